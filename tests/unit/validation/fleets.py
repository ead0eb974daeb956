"""Fleets of two models on the same rows, for the tests of validation."""

from __future__ import annotations

import numpy as np

from fedretrain.validation.count import count_rows
from fedretrain.validation.rows import Labelled, Layout, Rows

DAY_S = 86_400.0
CLASSES = 4


def labelled(device_N, *, num_groups=4, classes=CLASSES, seed=0, late_fraction=0.2, regression=False):
    """Rows over ten days; a share of the labels comes two days late."""
    rng = np.random.default_rng(seed)
    size = len(device_N)
    delay = np.where(rng.random(size) < late_fraction, 2.0 * DAY_S, 600.0)
    label = rng.normal(size=size) if regression else rng.integers(0, classes, size)
    return Labelled(device_N, device_N % num_groups, np.sort(rng.random(size)) * 10 * DAY_S, delay, label)


def answers(label_N, right_N, *, classes=CLASSES, confidence=0.9):
    """Probabilities of a model that is right where `right_N` holds; `confidence` may be an array."""
    said = np.where(right_N, label_N, (label_N + 1) % classes)
    confidence = np.broadcast_to(confidence, said.shape)
    out = np.repeat(((1.0 - confidence) / (classes - 1))[:, None], classes, axis=1)
    out[np.arange(len(said)), said] = confidence
    return out


def pair(rows, p_champion, p_candidate, *, seed=1, device_spread=0.03):
    """Whether champion and candidate are right, row by row.

    Devices differ by `device_spread`, alike for both models; one coin decides a row for both, so that equal models
    disagree on a tenth of the rows only.
    """
    rng = np.random.default_rng(seed)
    size = len(rows)
    offset = rng.normal(0.0, device_spread, int(rows.device_N.max()) + 1)[rows.device_N]
    coin, fresh = rng.random(size), rng.random(size)
    again = np.where(rng.random(size) < 0.1, fresh, coin)
    return coin < np.clip(p_champion + offset, 0, 1), again < np.clip(p_candidate + offset, 0, 1)


def statistics(layout, rows, p_champion=0.8, p_candidate=0.8, *, seed=1, confidence=(0.8, 0.8)):
    """Statistics of a champion and a candidate with the given accuracies (numbers, or one for each row)."""
    champion, candidate = pair(rows, p_champion, p_candidate, seed=seed)
    return count_rows(
        layout,
        Rows(
            rows,
            answers(rows.label_N, candidate, confidence=confidence[0]),
            answers(rows.label_N, champion, confidence=confidence[1]),
        ),
    )


def layout_of(policy, *, classes=CLASSES):
    """Five slices of two days."""
    return Layout.of(policy, classes, tuple(2 * DAY_S * s for s in range(1, 5)))
