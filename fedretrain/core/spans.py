"""Sets of whole numbers as spans: ascending, disjoint, never adjacent pairs ``(first, last)``, both ends included.

Rules of this file:
    * Pure. A set has one form only, so equal sets are equal tuples.
    * Work and size depend on the number of spans, never on how far apart their ends are: a stranger may send either.
"""

from __future__ import annotations

from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
Spans: TypeAlias = tuple[Span, ...]


def add(spans: Spans, first: int, last: int) -> Spans:
    """The set with `first` to `last` in it."""
    before = tuple(span for span in spans if span[1] < first - 1)
    after = tuple(span for span in spans if span[0] > last + 1)
    touched = spans[len(before) : len(spans) - len(after)]
    if touched:
        first, last = min(first, touched[0][0]), max(last, touched[-1][1])
    return (*before, (first, last), *after)


def remove(spans: Spans, first: int, last: int) -> Spans:
    """The set without `first` to `last`."""
    kept: list[Span] = []
    for start, end in spans:
        if end < first or start > last:
            kept.append((start, end))
            continue
        if start < first:
            kept.append((start, first - 1))
        if end > last:
            kept.append((last + 1, end))
    return tuple(kept)


def missing(spans: Spans, first: int, last: int) -> Spans:
    """What of `first` to `last` is not in the set."""
    rest: Spans = ((first, last),)
    for start, end in spans:
        rest = remove(rest, start, end)
    return rest


def size(spans: Spans) -> int:
    """How many numbers are in the set."""
    return sum(last - first + 1 for first, last in spans)


def contains(spans: Spans, number: int) -> bool:
    """Whether a number is in the set."""
    return any(first <= number <= last for first, last in spans)
