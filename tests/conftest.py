"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.whole_run")  # its assertions say what they found, as a test's own do

_ROOT = Path(__file__).resolve().parent.parent
_SETS = {
    "gas_drift": "gas_drift/gas_drift.npz",
    "wisdm": "wisdm_v1/wisdm_v1.npz",
    "beijing_air": "beijing_air/beijing_air.npz",
}


def find_data() -> Path | None:
    """The folder with copies of the public data sets, if this machine has one."""
    given = os.environ.get("FEDRETRAIN_DATA")
    for folder in (Path(given) if given else None, _ROOT.parent / "shared" / "data"):
        if folder is not None and folder.is_dir():
            return folder
    return None


def has_data(name: str) -> bool:
    """True if the named public data set is on this machine."""
    folder = find_data()
    return folder is not None and (folder / _SETS[name]).is_file()


@pytest.fixture
def data_dir(request: pytest.FixtureRequest) -> Path:
    """The data folder. Mark the test ``@pytest.mark.dataset("wisdm")`` for the set that it needs.

    Skips where the set is not on this machine (it may not be redistributed with the project).
    """
    marker = request.node.get_closest_marker("dataset")
    needed = marker.args if marker else tuple(_SETS)
    for name in needed:
        if not has_data(name):
            pytest.skip(f"the public data set {name} is not on this machine")
    folder = find_data()
    assert folder is not None
    return folder


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "dataset(*names): the public data sets that the test reads")
