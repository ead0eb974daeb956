"""A stretch of local training; apart from `task`, because a device without torch plans its batches too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A stretch of local training.

    Attributes:
        name: What `LocalTask.step` is told, for example ``"shared"`` or ``"personal"``.
        epochs: Passes over the client's samples; 0 means exactly `max_steps` steps.
        max_steps: An upper bound on the steps, whatever the number of samples; 0 means no bound.
        released: True if what it computes leaves the device, or feeds what does: example-level DP charges it.
    """

    name: str
    epochs: int
    max_steps: int = 0
    released: bool = True
