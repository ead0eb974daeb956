"""What a device trains on: a small port, and its simplest implementation over files in a folder.

Rules of this file:
    * Nothing here leaves the device. Personal state is written whole or not at all, with the version of the shared
      parameters that it belongs to.
    * Without torch and without Flower: the agent fills this store, the training process reads it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from fedretrain.core.build import build, plain
from fedretrain.core.durable import write_whole
from fedretrain.core.errors import DataError
from fedretrain.core.types import ClientData
from fedretrain.edge.example_privacy import Account

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.core.ids import ClientId

    Arrays = dict[str, NDArray[np.float32]]


class DeviceData(Protocol):
    """Port: the examples and personal states of the logical devices that one agent hosts."""

    def clients(self) -> tuple[ClientId, ...]:
        """Which clients this agent answers for, sorted."""
        ...

    def examples(self, client: ClientId, at: float) -> ClientData | None:
        """The labelled examples of a client.

        Args:
            client: Who.
            at: Instant, seconds since the epoch: what became known later is left out.

        Returns:
            The examples; None if this agent does not host the client.
        """
        ...

    def personal(self, client: ClientId, *, noised: bool = False) -> NDArray[np.float32] | None:
        """``[Q]`` the packed personal state; None if there is none yet.

        Args:
            client: Whose.
            noised: The one that only example-level DP has made, kept apart: no example goes into it without noise.
        """
        ...

    def commit_personal(
        self, client: ClientId, row: NDArray[np.float32], base_version: int, *, noised: bool = False
    ) -> None:
        """Keep a new personal state durably.

        Args:
            client: Whose.
            row: ``[Q]`` packed.
            base_version: Version of the shared parameters that it was trained beside.
            noised: See `personal`.
        """
        ...

    def residual(self, client: ClientId, campaign: str) -> NDArray[np.float32] | None:
        """``[P]`` what quantising left over of the client's last update in a campaign; None: nothing yet."""
        ...

    def commit_residual(self, client: ClientId, row: NDArray[np.float32], campaign: str) -> None:
        """Keep what quantising left over durably.

        Args:
            client: Whose.
            row: ``[P]`` packed.
            campaign: In another one it is of no use.
        """
        ...

    def account(self, client: ClientId) -> Account | None:
        """Where the client keeps what its examples have cost; None if this agent keeps nothing of it."""
        ...


class FolderData:
    """Examples in ``examples-CLIENT.safetensors`` (``x``, ``y``, optionally ``known_at``), personal states beside them.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)

    def clients(self) -> tuple[ClientId, ...]:
        """The clients that have a file of examples."""
        from fedretrain.core.ids import ClientId

        found = self._folder.glob("examples-*.safetensors")
        names = [path.stem.removeprefix("examples-") for path in found]
        return tuple(ClientId(int(name)) for name in sorted(names, key=_number) if name.isdigit())

    def examples(self, client: ClientId, at: float) -> ClientData | None:
        """See `DeviceData.examples`."""
        arrays = self._load(f"examples-{int(client)}")
        if arrays is None:
            return None
        x, y = arrays["x"], arrays["y"]
        if "known_at" in arrays:
            known = arrays["known_at"] <= at
            x, y = x[known], y[known]
        return ClientData(x, y)

    def put_examples(
        self,
        client: ClientId,
        data: ClientData,
        known_at: NDArray[np.float64] | None = None,
    ) -> None:
        """Write the examples of a client.

        Args:
            client: Whose.
            data: Inputs and labels.
            known_at: ``[N]`` when each became known, seconds since the epoch; None: always.
        """
        arrays = {"x": np.ascontiguousarray(data.x), "y": np.ascontiguousarray(data.y)}
        if known_at is not None:
            arrays["known_at"] = np.asarray(known_at, dtype=np.float64)
        self._save(f"examples-{int(client)}", arrays)

    def personal(self, client: ClientId, *, noised: bool = False) -> NDArray[np.float32] | None:
        """See `DeviceData.personal`."""
        arrays = self._load(_personal(client, noised=noised))
        return None if arrays is None else arrays["row"]

    def commit_personal(
        self, client: ClientId, row: NDArray[np.float32], base_version: int, *, noised: bool = False
    ) -> None:
        """See `DeviceData.commit_personal`."""
        version = np.array([base_version], dtype=np.int64)
        content: dict[str, NDArray[np.generic]] = {"row": np.ascontiguousarray(row), "base_version": version}
        self._save(_personal(client, noised=noised), content)

    def residual(self, client: ClientId, campaign: str) -> NDArray[np.float32] | None:
        """See `DeviceData.residual`."""
        arrays = self._load(f"residual-{int(client)}")
        if arrays is None or arrays["campaign"].tobytes() != campaign.encode():
            return None
        return arrays["row"]

    def commit_residual(self, client: ClientId, row: NDArray[np.float32], campaign: str) -> None:
        """See `DeviceData.commit_residual`."""
        name = np.array(list(campaign.encode()), dtype=np.uint8)
        content: dict[str, NDArray[np.generic]] = {"row": np.ascontiguousarray(row), "campaign": name}
        self._save(f"residual-{int(client)}", content)

    def account(self, client: ClientId) -> Account | None:
        """See `DeviceData.account`."""
        path = self._account(client)
        try:
            return build(Account, json.loads(path.read_bytes()), where=str(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(f"the file cannot be read: {error}", where=str(path)) from error

    def put_account(self, client: ClientId, account: Account) -> None:
        """Write where a client keeps what its examples have cost."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._account(client), json.dumps(plain(account)).encode())

    def _account(self, client: ClientId) -> Path:
        return self._folder / f"account-{int(client)}.json"

    def _load(self, name: str) -> Arrays | None:
        path = self._folder / f"{name}.safetensors"
        try:
            return dict(safetensors.numpy.load(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            raise DataError(
                f"the file cannot be read: {error}",
                where=str(path),
                fix="delete it; the device collects anew",
            ) from error

    def _save(self, name: str, arrays: dict[str, NDArray[np.generic]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / f"{name}.safetensors", safetensors.numpy.save(arrays))


def open_data(where: Path | str) -> DeviceData:
    """The data of an agent, from what its environment names.

    Args:
        where: A folder for `FolderData`.

    Raises:
        DataError: If there is none.
    """
    if not Path(where).is_dir():
        raise DataError(
            "there are no examples to train on", where=str(where), fix="name the agent's folder of examples"
        )
    return FolderData(where)


def _personal(client: ClientId, *, noised: bool) -> str:
    return f"{'noised' if noised else 'personal'}-{int(client)}"


def _number(name: str) -> int:
    return int(name) if name.isdigit() else -1
