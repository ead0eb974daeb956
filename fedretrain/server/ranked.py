"""In which order a rollout's devices are exposed, as it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Ranked:
    """Frozen with `core.frozen`.

    Attributes:
        rank_D: ``[D]`` float64 place in the queue for exposure.
    """

    rank_D: NDArray[np.float64]
