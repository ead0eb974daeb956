"""The conservative rules of a simulated fleet: version 0, what devices serve where no model may.

Rules of this file:
    * They look at no input: the commonest class of the history, with its share as confidence. Real rules are a person's and know
      more; what a life loses by falling back to these is an upper bound.
    * They are made of the labels that had come back before the life begins, and never change.
    * Class shares of the whole history are in every package as rules would be; no epsilon covers them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.lifetime.rows import LifeRows

_NEVER_SEEN = 1e-12  # in place of a share of nothing, whose logarithm is not finite


def rules_logits(rows: LifeRows, num_outputs: int) -> NDArray[np.float32]:
    """``[M]`` what the rules say of any row, as logits: the shares of the classes in the history are their softmax.

    Args:
        rows: Every row of the life.
        num_outputs: M.

    Returns:
        Zeros, which prefer no class, where no label had come back.
    """
    history = rows.between(-np.inf, 0.0)
    known = rows.y[history][rows.label_at[history] <= 0.0].astype(np.int64)
    if not len(known):
        return np.zeros(num_outputs, dtype=np.float32)
    share = np.bincount(known, minlength=num_outputs) / len(known)
    return np.log(np.maximum(share, _NEVER_SEEN)).astype(np.float32)
