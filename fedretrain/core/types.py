"""The values that travel between the layers; numpy only.

Shape letters: K clients in a block, N samples of a client, F model inputs, P shared parameters (packed),
Q personal state (packed).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedretrain.core.ids import ClientId


class Objective(StrEnum):
    """What a model is trained for."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


class MethodKind(StrEnum):
    """The personalization methods; each has its file and its paper in `training.methods`."""

    FEDAVG = "fedavg"
    FINETUNE = "finetune"
    FEDPER = "fedper"
    FEDREP = "fedrep"
    APFL = "apfl"
    DITTO = "ditto"


@dataclass(frozen=True)
class ClientData:
    """One client's labelled model inputs.

    Attributes:
        x: ``[N, *F]`` float32, finite.
        y: ``[N]`` int64 class indices, or ``[N]`` float32 targets.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]

    def __len__(self) -> int:
        return len(self.y)


class FailureKind(StrEnum):
    """Why a client of a cohort contributed nothing."""

    UNAVAILABLE = "unavailable"  # offline when asked
    DROPPED = "dropped"  # went away in mid-round
    TIMEOUT = "timeout"  # after the deadline
    REFUSED = "refused"  # the device declined, by policy or for lack of a capability
    NO_DATA = "no_data"  # nothing labelled to train on
    MALFORMED = "malformed"  # wrong shape, names or types
    NONFINITE = "nonfinite"  # NaN or infinity in the update
    STALE = "stale"  # made from another base version
    LOST = "lost"  # its worker died and could not be replaced


@dataclass(frozen=True)
class ClientFailure:
    """A failure is a value, never an exception in the round loop."""

    client: ClientId
    kind: FailureKind
    detail: str = ""


@dataclass(frozen=True)
class UpdateBlock:
    """Client updates of a block of K clients; a device is a block with K = 1.

    Attributes:
        clients: ``[K]`` int64 client ids.
        delta_KP: ``[K, P]`` float32: local minus base, shared parameters only, packed by the model's `Layout`.
        num_examples: ``[K]`` int64.
        loss: ``[K]`` float32 mean training loss. Stays on the device's side of the boundary with DP on: only the
            simulator's oracle reads it.
        personal_KQ: ``[K, Q]`` float32 personal state after training, packed. Never leaves the device.
    """

    clients: NDArray[np.int64]
    delta_KP: NDArray[np.float32]
    num_examples: NDArray[np.int64]
    loss: NDArray[np.float32]
    personal_KQ: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.clients)

    def take(self, keep: NDArray[np.bool_]) -> UpdateBlock:
        """The block of the clients where `keep` (``[K]``) holds."""
        return UpdateBlock(
            self.clients[keep],
            self.delta_KP[keep],
            self.num_examples[keep],
            self.loss[keep],
            self.personal_KQ[keep],
        )
