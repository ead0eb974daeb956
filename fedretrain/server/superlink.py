"""Flower's SuperLink as a child of the coordinator: started, watched, told which nodes and runs there are.

Rules of this file:
    * TLS and SuperNode authentication by registered keys; plain HTTP only with an explicit development flag.
    * Flower may start no code of a run here: the SuperLink is isolated from app processes, which need a secret to take
      a task, and `server_app` carries out its own run alone.
    * The app bundle is a shim of a few lines that names installed modules. Its SHA-256 is known before a run starts.
    * Flower's database is its own business and holds nothing that we need again: nodes are registered at every start.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import httpx

from fedretrain.core.child import Child, Command, leashed
from fedretrain.core.durable import write_whole
from fedretrain.core.errors import ConfigError, FedretrainError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from fedretrain.server.config import Flower
    from fedretrain.server.keys import Keys

_HEALTHY_S = 60.0
_LOOK_S = 0.1
_PROBE_S = 2.0
_GONE, _PENDING = "unregistered", "pending"
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedretrain-campaign"
version = "1.0.0"
description = "Names the installed apps of fedretrain; holds no code of its own."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedretrain"

[tool.flwr.app.components]
serverapp = "fedretrain_campaign_server:server_app"
clientapp = "fedretrain_campaign_client:client_app"

[tool.flwr.app.config]
"""


@dataclass(frozen=True)
class Bundle:
    """A Flower app bundle.

    Attributes:
        content: The file.
        digest: Its SHA-256, in hexadecimal digits.
    """

    content: bytes
    digest: str

    @classmethod
    def of(cls, content: bytes) -> Self:
        """The bundle of a file."""
        return cls(content, hashlib.sha256(content).hexdigest())


def campaign_bundle() -> Bundle:
    """The bundle of every campaign: two shims."""
    from flwr.cli.build import build_fab_from_files

    files: dict[str, bytes | Path] = {
        "pyproject.toml": _PROJECT.encode(),
        "fedretrain_campaign_client.py": b"from fedretrain.edge.client_app import client_app as client_app\n",
        "fedretrain_campaign_server.py": b"from fedretrain.server.server_app import server_app as server_app\n",
    }
    return Bundle.of(build_fab_from_files(files)[0])


@dataclass(frozen=True)
class SuperLinkConfig:
    """How the SuperLink runs.

    Attributes:
        host: Address to listen at.
        port: Of all of Flower's APIs.
        certificate: PEM file, with the names that devices use; None only with `insecure`.
        private_key: PEM file of the certificate; None only with `insecure`.
        root_certificates: PEM file that devices and the coordinator trust; None only with `insecure`.
        insecure: Development: plain HTTP, and any SuperNode is let in.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    certificate: Path | None = None
    private_key: Path | None = None
    root_certificates: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        given = (self.certificate, self.private_key, self.root_certificates)
        if not self.insecure and None in given:
            raise ConfigError(
                "the SuperLink needs a certificate, its key and the root certificates",
                where="flower.certificate, flower.private_key, flower.root_certificates",
                fix="give all three, or set flower.insecure on a development machine",
            )

    @property
    def address(self) -> str:
        """``HOST:PORT`` as this machine reaches it."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104 - compared, not bound
        return f"{host}:{self.port}"

    def words(self) -> tuple[str, ...]:
        """Of `flower-superlink`."""
        if self.insecure:
            return ("--insecure",)
        return (
            *("--ssl-certfile", str(self.certificate), "--ssl-keyfile", str(self.private_key)),
            *("--ssl-ca-certfile", str(self.root_certificates), "--enable-supernode-auth"),
        )


def config_of(flower: Flower, keys: Keys) -> SuperLinkConfig:
    """How the SuperLink of a coordinator runs."""
    host, port = flower.fleet.rsplit(":", 1)
    if flower.development:
        return SuperLinkConfig(host, int(port), insecure=True)
    return SuperLinkConfig(host, int(port), keys.server_certificate, keys.server_key, keys.authority_file)


class SuperLink:
    """The SuperLink of a coordinator.

    Args:
        config: How it runs.
        folder: For its database, its log and the secret of app processes.
    """

    def __init__(self, config: SuperLinkConfig, folder: Path) -> None:
        self.config = config
        self.secret = folder / "superlink.secret"
        folder.mkdir(parents=True, exist_ok=True)
        if not self.secret.exists():
            write_whole(self.secret, secrets.token_bytes(32))
        words = leashed(
            "flower-superlink",
            *config.words(),
            *("--isolation", "process", "--superexec-auth-secret-file", str(self.secret)),
            *("--database", str(folder / "superlink.db"), "--disable-runtime-dependency-installation"),
            *("--host", config.host, "--port", str(config.port)),
        )
        env = {**_QUIET, "FLWR_HOME": str(folder / "flwr")}
        self._last_run = 0
        self.child = Child(Command(words, folder / "superlink.log", env))

    def ensure(self, now: float) -> bool:
        """Start it if it does not run and is due; whether it was started.

        Args:
            now: Monotonic instant, seconds.
        """
        return self.child.ensure(now)

    def is_healthy(self) -> bool:
        """Whether it answers."""
        scheme = "http" if self.config.insecure else "https"
        try:
            with httpx.Client(verify=self._verify(), timeout=_PROBE_S) as client:
                return client.get(f"{scheme}://{self.config.address}/health").is_success
        except httpx.HTTPError:
            return False

    def wait_until_healthy(self, patience_s: float = _HEALTHY_S) -> None:
        """Return when it answers.

        Raises:
            FedretrainError: If it does not in time, or ended.
        """
        until = time.monotonic() + patience_s
        while time.monotonic() < until and self.child.is_alive:
            if self.is_healthy():
                return
            time.sleep(_LOOK_S)
        log = self.child.command.log
        raise FedretrainError(f"the SuperLink did not start; its log is {log}")

    def is_ready(self) -> bool:
        """Whether a run can be started: it answers, and the last run was taken by its app.

        The apps take whatever task waits longest, so there is never more than one of ours.
        """
        return self.is_healthy() and (not self._last_run or self.run_status(self._last_run) != _PENDING)

    def admit(self, public_keys: Iterable[bytes]) -> None:
        """Let SuperNodes in by their keys, and no others: one whose key is not named any more is shut out at once.

        Args:
            public_keys: PEM (SubjectPublicKeyInfo), NIST EC.
        """
        from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest

        wanted = set(public_keys)
        with self._control() as control:
            nodes = control.ListNodes(ListNodesRequest()).nodes_info
            known = {node.public_key: node.node_id for node in nodes if node.status != _GONE}
            for key in sorted(wanted - set(known)):
                control.RegisterNode(RegisterNodeRequest(public_key=key))
            for key in set(known) - wanted:
                control.UnregisterNode(UnregisterNodeRequest(node_id=known[key]))

    def start_run(self, bundle: Bundle) -> int:
        """Start a run and return its number; a `server_app` process carries it out.

        Raises:
            FedretrainError: If Flower does not take it.
        """
        from flwr.common.serde import fab_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        fab = fab_to_proto(Fab(bundle.digest, bundle.content, {}))
        try:
            with self._control() as control:
                answer = control.StartRun(StartRunRequest(fab=fab))
        except httpx.HTTPError as error:
            raise FedretrainError(f"Flower did not start a run: {error}") from error
        if not answer.HasField("run_id"):
            raise FedretrainError("Flower did not start a run")
        self._last_run = int(answer.run_id)
        return self._last_run

    def run_status(self, run: int) -> str:
        """``"pending"``, ``"running"``, ``"finished:completed"`` and so on; empty for an unknown run."""
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._control() as control:
            found = control.ListRuns(ListRunsRequest(run_id=run)).run_dict
        if run not in found:
            return ""
        status = found[run].status
        return f"{status.status}:{status.sub_status}" if status.sub_status else str(status.status)

    def stop_run(self, run: int) -> None:
        """End a run; its nodes are told."""
        from flwr.proto.control_pb2 import StopRunRequest

        with self._control() as control:
            control.StopRun(StopRunRequest(run_id=run))

    def stop(self) -> None:
        """End the process. May be called twice."""
        self.child.stop()

    def _control(self) -> Any:
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when Flower is imported
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        roots = self.config.root_certificates
        return closing(
            ControlHttpClient.from_server_address(
                server_address=self.config.address,
                insecure=self.config.insecure,
                root_certificates=None if self.config.insecure or roots is None else roots.read_bytes(),
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            )
        )

    def _verify(self) -> Any:
        import ssl

        if self.config.insecure:
            return False
        return ssl.create_default_context(cafile=str(self.config.root_certificates))
