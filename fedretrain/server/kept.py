"""What a population's monitors keep, as a note of its stream and blobs beside it, and back.

Rules of this file:
    * A baseline is large and seldom another: it is frozen again only where it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.coordinator.watching import NOWHERE, Kept
from fedretrain.core.frozen import freeze, thaw
from fedretrain.monitoring.aside import KeptOut
from fedretrain.monitoring.baseline import Baseline
from fedretrain.monitoring.bins import Bins
from fedretrain.monitoring.locate import DriftPlace
from fedretrain.server.memory import BaselineNote

if TYPE_CHECKING:
    from fedretrain.artifacts.store import ContentStore


def note_of(kept: Kept, known: Kept | None, last: BaselineNote, states: ContentStore) -> BaselineNote:
    """What is kept, as a note; its blobs are stored.

    Args:
        kept: What is kept now.
        known: What was noted last; None before the first note.
        last: That note.
        states: Where blobs are.
    """
    blob = last.blob
    if known is None or kept.baseline is not known.baseline:
        blob = "" if kept.baseline is None else states.put(freeze(kept.baseline))
    where = "" if kept.where is NOWHERE else states.put(freeze(kept.where))
    stays = tuple((stay.device, stay.first, stay.end) for stay in kept.stays)
    return BaselineNote(blob, kept.settled_at, kept.recorded_at, kept.inputs_slot, where, stays)


def kept_of(note: BaselineNote, states: ContentStore) -> Kept | None:
    """What was noted; None before the first note.

    Args:
        note: The last one.
        states: Where its blobs are.
    """
    if note == BaselineNote():
        return None
    return Kept(
        thaw(Baseline, states.get(note.blob), Bins) if note.blob else None,
        note.settled_at,
        note.recorded_at,
        note.inputs_slot,
        thaw(DriftPlace, states.get(note.where)) if note.where else NOWHERE,
        tuple(KeptOut(*stay) for stay in note.stays),
    )
