"""Whatever rows devices hold: what they count for themselves and send adds up to what a pool of the same rows counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedretrain.artifacts.delta import release
from fedretrain.artifacts.package import open_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.edge.config import RefitConfig
from fedretrain.edge.evaluation import Version, count_here
from fedretrain.edge.example_reads import HeldRows
from fedretrain.server.pool import Pool, count_pool
from fedretrain.validation.checks import Inspection, evaluate
from fedretrain.validation.config import CriticalSegment, ValidationPolicy
from fedretrain.validation.rows import Labelled
from fedretrain.validation.statistics import SUMS, merge_all
from fedretrain.wire.answers import decode_answer, encode_answer
from fedretrain.wire.control import ReportShape, decode
from tests.slot_cases import SIZE, write

SEGMENTS = (
    CriticalSegment("early", until_at=30.0),
    CriticalSegment("hot of group 1", labels=(2,), groups=(1,)),
)
POLICY = ValidationPolicy(late_after_s=4.0, segments=SEGMENTS, min_label_rows=1, num_slices=3)


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    store = ContentStore(tmp_path_factory.mktemp("store"))
    rng = np.random.default_rng(0)
    found = []
    for version in (1, 2):
        tree = {
            "head.weight": rng.normal(size=(3, SIZE)).astype(np.float32),
            "head.bias": np.zeros(3, np.float32),
        }
        found.append(open_package(store, write(store, release(None, tree), version)))
    return found


def _answered(layout, at, rows, versions, device):
    """One device's statistics, over the wire."""
    candidate, champion = (Version(one, rows, RefitConfig(), {}) for one in versions)
    group = device % 2
    stats = count_here(layout, rows, candidate, champion, device=device, group=group)
    said = decode(encode_answer("p/2/1", stats), device, 0.0, ReportShape(1, 1, 3), lambda _: None)
    ends = {"from_at": float(at.min()) - 1.0, "until_at": float(at.max()) + 1.0}
    return decode_answer(said.content, layout, device=device, group=group, max_rows=1000, **ends)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 6), st.randoms(use_true_random=False))
def test_the_sum_of_what_devices_send_is_what_the_pool_counts(versions, seed, size, num_devices, random):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (size, SIZE)).astype(np.float32)
    device, y = rng.integers(0, num_devices, size), rng.integers(0, 3, size)
    at, delay = np.sort(rng.random(size) * 90.0), rng.exponential(4.0, size)
    candidate, champion = versions
    pooled = count_pool(POLICY, Pool(x, Labelled(device, device % 2, at, delay, y), ""), candidate, champion)
    numbers = np.unique(device).tolist()
    random.shuffle(numbers)
    parts = []
    for number in numbers:
        mine = device == number
        inputs = candidate.pipeline.apply(x[mine])
        rows = HeldRows(at[mine], (at + delay)[mine], inputs, y[mine])
        parts.append(_answered(pooled.layout, at, rows, versions, number))
    merged = merge_all(pooled.layout, parts)
    for name in ("device_D", "group_D", *SUMS):
        assert np.array_equal(getattr(merged, name), getattr(pooled, name)), name
    reports = [evaluate(POLICY, one, Inspection(), candidate=2, champion=1) for one in (merged, pooled)]
    np.testing.assert_equal(reports[0].checks, reports[1].checks)
    assert reports[0].verdict is reports[1].verdict
