"""`rollout start`: a version that is registered and valid begins its rollout by a person's word."""

from __future__ import annotations

import pytest

from fedretrain.artifacts.weights import encode_params
from fedretrain.coordinator.cycle import Propose
from fedretrain.server.desk import Desk
from tests.server_cases import lines


@pytest.fixture
def furnished(office):
    """Two versions: the champion, and one that its weights were brought for."""
    office.write_policy(validation={"required": ["sanity"]})
    assert office.on("models", "import", "--rounds", "5").status == 0
    office.begin()
    weights = Desk(office.config, "").models.package(1).weights
    file = office.folder / "new.safetensors"
    file.write_bytes(encode_params(weights))
    assert office.on("models", "propose", "--weights", file, "--by", "ben").status == 0
    return office


def test_a_valid_version_is_ordered_to_begin(furnished):
    said = furnished.on("rollout", "start", "2", "--by", "anna", "--reason", "last season", "--json")
    assert (said.status, said.json) == (0, {"version": 2})
    assert furnished.ordered()[-1] == Propose(2, "anna", "last season")


def _refused(office, version, named):
    before = office.ordered()
    said = office.on("rollout", "start", version, "--by", "anna")
    (line,) = lines(said.err)
    assert (said.status, named in line) == (2, True)
    assert office.ordered() == before


@pytest.mark.parametrize(
    ("version", "named"), [(1, "is what serves"), (9, "no version 9"), (0, "is what serves")]
)
def test_any_other_is_refused_in_one_line(furnished, version, named):
    _refused(furnished, version, named)


def test_a_version_that_the_pool_cannot_pass_is_refused(furnished):
    furnished.write_policy()  # which asks for more than a pool of one device can say
    _refused(furnished, 2, "the offline validation of version 2 says inconclusive")
