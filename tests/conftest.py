"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import postgres_cases

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what runs in its background deaf to Ctrl-C, and children inherit that: tests that send it would fail.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_cases.Cluster]:
    """A PostgreSQL that runs as long as the tests of this process do."""
    why = postgres_cases.missing()
    if why:
        pytest.skip(why)
    cluster = postgres_cases.Cluster()
    yield cluster
    cluster.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind that the coordinator can use."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/server.db"
        return
    cluster: postgres_cases.Cluster = request.getfixturevalue("postgres")
    with cluster.database() as url:
        yield url
