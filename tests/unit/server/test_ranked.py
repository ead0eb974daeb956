"""In which order a fleet's devices are exposed."""

from __future__ import annotations

from fedretrain.rollout.exposure import JOINED, exposed
from fedretrain.server.fleet import Device, Standing, Traits
from fedretrain.server.ranked import queue


def _fleet(gone):
    return [
        Device(
            "p", f"d{i}", i, "", Standing.RETIRED if i in gone else Standing.ACTIVE, Traits(site="ab"[i % 2])
        )
        for i in range(24)
    ]


def test_a_share_is_of_the_devices_that_are_there():
    gone = set(range(16))
    rank_D = queue(_fleet(gone), 5)
    on_D = exposed(rank_D, 0.25)
    assert on_D.sum() == 2
    assert not on_D[:16].any()
    assert (rank_D[:16] == JOINED).all()
    assert sorted(rank_D[16:]) == [(slot + 0.5) / 8 for slot in range(8)]


def test_a_fleet_that_is_gone_has_a_queue_without_anybody():
    assert (queue(_fleet(set(range(24))), 5) == JOINED).all()
