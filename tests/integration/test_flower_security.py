"""TLS, keys and bundles over real Flower processes: who is let in, and whose code runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fedretrain.server.campaign_rules import CampaignRules, SamplingRule
from fedretrain.server.superlink import Bundle, SuperLink
from tests.flower_cases import NUM_DEVICES, Fleet, Keys, definition, examples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.faults

RULES = CampaignRules(SamplingRule(cohort_size=NUM_DEVICES), quorum=1, deadline_s=30.0)
SPY = """\
from pathlib import Path
Path({proof!r}).write_text("the server's code ran on the device")
from fedretrain.edge.client_app import client_app as client_app
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two agents with keys, and one whose key nobody enrolled."""
    root = tmp_path_factory.mktemp("secure")
    found = Fleet(root, Keys(root / "keys"))
    found.recruit("agent-0", {0: examples(0), 1: examples(1)})
    found.recruit("agent-1", {2: examples(2)})
    enrolled = dict(found.nodes)
    found.recruit("stranger", {3: examples(3)})
    found.enrol(enrolled)
    yield found
    found.stop()


def other_bundle(proof: Path) -> Bundle:
    """A bundle that would run code of its own on a device that opened it."""
    from flwr.cli.build import build_fab_from_files

    from fedretrain.server.superlink import _PROJECT

    files: dict[str, bytes | Path] = {
        "pyproject.toml": _PROJECT.encode(),
        "fedretrain_campaign_client.py": SPY.format(proof=str(proof)).encode(),
        "fedretrain_campaign_server.py": SPY.format(proof=str(proof)).encode(),
    }
    return Bundle.of(build_fab_from_files(files)[0])


def test_only_enrolled_keys_are_let_in(fleet: Fleet) -> None:
    """Over TLS; the stranger's node is never asked, though it hosts a device of the population."""
    fleet.begin(definition(fleet.store, rules=RULES, num_rounds=1, min_online=3))
    record = fleet.run()
    assert record.end == "complete"
    summary = record.rounds[0].summary
    assert (summary["num_asked"], summary["num_contributed"]) == (3, 3)


def test_another_bundle_is_refused_and_its_code_runs_nowhere(fleet: Fleet, tmp_path: Path) -> None:
    """A SuperLink that hands out a bundle which is not the invitation's."""
    other = fleet.store.put(other_bundle(tmp_path / "proof").content)
    fleet.begin(
        definition(fleet.store, campaign="spy", rules=RULES, num_rounds=1, min_online=3, bundle=other)
    )
    record = fleet.run()
    assert record.rounds[0].version == 0
    assert record.rounds[0].summary["failures"] == {"refused": 3}
    assert not (tmp_path / "proof").exists()


def test_a_run_that_a_stranger_started_is_ended_and_its_code_runs_nowhere(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Whoever reaches Flower's Control API can start a run: the server carries out its own alone."""
    stranger = SuperLink(fleet.superlink.config, tmp_path)
    foreign = stranger.start_run(other_bundle(tmp_path / "proof"))
    fleet.begin(definition(fleet.store, campaign="own", rules=RULES, num_rounds=1, min_online=3))
    assert fleet.run().rounds[0].summary["num_contributed"] == 3
    assert fleet.superlink.run_status(foreign) == "finished:failed"
    assert not (tmp_path / "proof").exists()


def test_a_revoked_key_is_shut_out_of_the_next_campaign(fleet: Fleet) -> None:
    """And the same agents serve the campaign's own bundle again."""
    fleet.enrol({key: devices for key, devices in fleet.nodes.items() if devices == [0, 1]})
    wanted = definition(fleet.store, campaign="after", rules=RULES, num_rounds=1, min_online=2)
    fleet.begin(replace(wanted, seed=8))
    summary = fleet.run().rounds[0].summary
    assert (summary["num_asked"], summary["num_contributed"]) == (2, 2)
