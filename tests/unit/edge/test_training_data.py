"""A device's examples and personal states in files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from fedretrain.core.ids import ClientId
from fedretrain.edge.training_data import FolderData, open_data
from tests.flower_cases import examples

if TYPE_CHECKING:
    from pathlib import Path


def test_examples_come_back(tmp_path: Path) -> None:
    data = FolderData(tmp_path / "new")
    data.put_examples(ClientId(2), examples(2))
    found = data.examples(ClientId(2), 0.0)
    assert found is not None
    np.testing.assert_array_equal(found.x, examples(2).x)
    np.testing.assert_array_equal(found.y, examples(2).y)
    assert data.examples(ClientId(3), 0.0) is None


def test_clients_are_sorted_by_number(tmp_path: Path) -> None:
    data = FolderData(tmp_path)
    for client in (10, 9, 2):
        data.put_examples(ClientId(client), examples(client))
    (tmp_path / "examples-x.safetensors").write_bytes(b"")
    assert data.clients() == (2, 9, 10)


def test_a_personal_state_is_replaced_whole(tmp_path: Path) -> None:
    data = FolderData(tmp_path)
    assert data.personal(ClientId(1)) is None
    for version in range(2):
        data.commit_personal(ClientId(1), np.full(5, version, np.float32), version)
    row = data.personal(ClientId(1))
    assert row is not None
    assert row.tolist() == [1.0] * 5
    assert [path.name for path in tmp_path.iterdir()] == ["personal-1.safetensors"]


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "examples-1.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(DataError, match="cannot be read"):
        FolderData(tmp_path).examples(ClientId(1), 0.0)


def test_what_the_environment_names_is_opened(tmp_path: Path) -> None:
    FolderData(tmp_path).put_examples(ClientId(1), examples(1))
    assert open_data(str(tmp_path)).clients() == (1,)
    with pytest.raises(DataError, match="no examples to train on"):
        open_data(tmp_path / "absent")
