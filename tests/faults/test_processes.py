"""kill -9 of each process in each phase: nothing lost, nothing twice, a model always served, and the work goes on where it was.

The processes of a campaign (SuperLink, ServerApp, SuperNode, app process) are killed in mid-round in
`tests/integration/test_flower_campaign.py`. A process that is new gets a role in `Plant.kill`, and its cells here.
"""

from __future__ import annotations

import pytest

from tests.plant_cases import DEVICES

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    "phase", ["idle", "shadow", "canary", pytest.param("rollback", marks=pytest.mark.one_fault)]
)
@pytest.mark.parametrize("role", ["coordinator", "gateway", "agent"])
def test_a_process_that_is_killed_costs_nothing(plant, role, phase):
    plant.reach(phase)
    before = plant.candidate()
    plant.revive(plant.kill(role))
    if phase == "idle":
        assert plant.serving() == {1: len(DEVICES)}
    elif phase == "rollback":
        plant.until(lambda: plant.serving() == {1: len(DEVICES)}, "every device is back on the champion")
        plant.until(lambda: plant.phase() == "rolled_back", "the rollout has ended")
        assert plant.desk.memory().begun.champion == 1 != before
    else:
        assert plant.candidate() == before
        assert plant.phase() in ({"shadow", "canary"} if phase == "shadow" else {"canary"})
    plant.check()
