"""The agent's half of a training campaign: a SuperNode and the app process, as children, only while a campaign runs.

Rules of this file:
    * What may run is in the signed invitation: the address of the SuperLink, and the SHA-256 of the app bundle. The
      server sends no code (see `client_app`).
    * Both children have limits of memory and priority, and end with the agent. Without torch here.
    * Connections are TLS with the device's key, unless the agent's file says that this is a development machine.
"""

from __future__ import annotations

import logging
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - `core.build` reads the annotations

from fedretrain.artifacts.store import check_digest
from fedretrain.core.child import Backoff, Child, Command, leashed
from fedretrain.core.durable import write_whole
from fedretrain.core.errors import ConfigError

MIB = 2**20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Invitation:
    """What a signed invitation says of a campaign, as far as its processes are concerned.

    Attributes:
        campaign: Which.
        superlink: ``HOST:PORT`` of the Fleet API.
        bundle: SHA-256 of the only app bundle that is answered.
    """

    campaign: str
    superlink: str
    bundle: str

    def __post_init__(self) -> None:
        check_digest(self.bundle)


@dataclass(frozen=True)
class TrainingLimits:
    """What a campaign may take of the device.

    Attributes:
        supernode_bytes: Private memory of the SuperNode.
        app_bytes: Private memory of the app process: torch, the model and the examples.
        niceness: Lower priority for both.
    """

    supernode_bytes: int = 512 * MIB
    app_bytes: int = 1024 * MIB
    niceness: int = 10


@dataclass(frozen=True)
class NodeKeys:
    """How the device and the SuperLink know each other.

    Attributes:
        private_key: The device's SuperNode key (NIST EC, OpenSSH format); None only with `insecure`.
        root_certificates: Of the SuperLink's TLS certificate; None only with `insecure`.
        insecure: Development: plain HTTP, any SuperLink and any SuperNode.
    """

    private_key: Path | None = None
    root_certificates: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if not self.insecure and (self.private_key is None or self.root_certificates is None):
            raise ConfigError(
                "training needs the device's key and the server's certificate",
                where="training.private_key, training.root_certificates",
                fix="enrol the device, or set training.insecure on a development machine",
            )

    def words(self) -> tuple[str, ...]:
        """Of `flower-supernode`."""
        if self.insecure:
            return ("--insecure",)
        return (
            *("--root-certificates", str(self.root_certificates)),
            *("--auth-supernode-private-key", str(self.private_key)),
        )


class CampaignProcesses:
    """The two children of one campaign.

    Args:
        invitation: Of the campaign, verified.
        keys: How device and SuperLink know each other.
        data: Where the agent's `DeviceData` is.
        folder: For logs and Flower's own files; not shared with another agent.
        limits: What they may take.
    """

    def __init__(
        self,
        invitation: Invitation,
        keys: NodeKeys,
        data: Path,
        folder: Path,
        limits: TrainingLimits | None = None,
    ) -> None:
        limits = limits or TrainingLimits()
        folder.mkdir(parents=True, exist_ok=True)
        secret, port = folder / "secret", _free_port()
        write_whole(secret, secrets.token_bytes(32))
        env = {**_QUIET, "FLWR_HOME": str(folder / "flwr"), "FEDRETRAIN_DEVICE_DATA": str(data)}
        env["FEDRETRAIN_CAMPAIGN"] = invitation.campaign
        supernode = leashed(
            "flower-supernode",
            *keys.words(),
            *("--superlink", invitation.superlink, "--isolation", "process"),
            *("--host", "127.0.0.1", "--port", str(port), "--superexec-auth-secret-file", str(secret)),
        )
        self.supernode = Child(
            Command(supernode, folder / "supernode.log", env, limits.supernode_bytes, limits.niceness)
        )
        app = (
            *("-m", "fedretrain.edge.client_app", "--runtime", f"127.0.0.1:{port}"),
            *("--secret", str(secret), "--bundle", invitation.bundle),
        )
        self._backoff = Backoff()
        self.app = Child(Command(app, folder / "app.log", env, limits.app_bytes, limits.niceness))

    def ensure(self, now: float) -> None:
        """Start both, when one does not run and they are due. Call it every second or so.

        Args:
            now: Monotonic instant, seconds.
        """
        if self.supernode.is_alive and self.app.is_alive:
            return
        # One without the other is of no use: a SuperNode waits a minute for the reply of a task that was lost.
        self.stop()
        self._backoff.failed(now)
        if self._backoff.is_due(now):
            self._backoff.begun(now)
            try:
                self.supernode.start()
                self.app.start()
            except OSError as error:  # the next call ends what began, and waits like after any other failure
                _log.warning("training cannot be started, it is tried again: %s", error)

    def stop(self) -> None:
        """End both. May be called twice."""
        self.app.stop()
        self.supernode.stop()


_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
