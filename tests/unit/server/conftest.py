"""A database for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fedretrain.server.database import open_database
from tests.server_cases import Office, write_office

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An empty database of each kind."""
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def office(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Office:
    """The folder of a coordinator that has no model yet."""
    write_office(tmp_path)
    return Office(tmp_path, capsys)


@pytest.fixture
def furnished(office: Office) -> Office:
    """The folder with a first champion, made on its pool."""
    said = office.on("models", "import", "--rounds", "1", "--outputs", "a,b,c")
    assert said.status == 0, said.err
    return office
