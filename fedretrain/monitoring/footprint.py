"""How much memory a store of counts will take, before it is made.

Rules of this file:
    * Every device reports each slot, and its sums fit 16 bits: up to 32,767 predictions in a slot, and sensor rows in a chunk. Where they do not,
      a plane is twice as wide.
    * What is by group is small, and is left out.

Shapes: see `store`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedretrain.monitoring.reports import NUM_CONFIDENCE_BINS, NUM_DELAY_BINS, NUM_DISTANCE_BINS

_SEEN = 2 * 8  # numbers of telemetry and of labels, by which a resend is known
_COUNTS = 2 * (3 + NUM_CONFIDENCE_BINS)
_LOSSES = 4 + 2  # a sum in fixed point, and how many
_REAL = 2 + 8 + 2 + 2  # a sum and its weight: wholes and fractions
_CHUNK = 4 * NUM_DELAY_BINS + 4 * NUM_DISTANCE_BINS + 4 * 8 + 2 * 4


@dataclass(frozen=True)
class Footprint:
    """What decides how much is kept.

    Attributes:
        num_slots: Slots in the ring.
        chunk_slots: Slots in a chunk.
        num_cells: Cells of all features together.
        num_kpis: KPIs that reports carry.
        classification: Labels come as confusion counts.
    """

    num_slots: int
    chunk_slots: int
    num_cells: int
    num_kpis: int
    classification: bool = True

    @property
    def slot_bytes(self) -> int:
        """Of one device in one slot under one version."""
        return _COUNTS + (_LOSSES if self.classification else _REAL) + _REAL * self.num_kpis

    def num_bytes(self, num_devices: int, num_versions: int) -> int:
        """Of a store.

        Args:
            num_devices: D.
            num_versions: Versions that are served in every slot: each has planes of its own.
        """
        slot = num_versions * self.slot_bytes + _SEEN
        chunk = 2 * self.num_cells + _CHUNK
        return num_devices * (self.num_slots * slot + self.num_slots // self.chunk_slots * chunk)
