"""What a plant is made of: processes that may be killed and started again, and who asks its devices for predictions."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.server_cases import rows

if TYPE_CHECKING:
    import signal

ROOT = Path(__file__).resolve().parents[1]
DEVICES = tuple(f"pump-{number}" for number in range(6))


@dataclass
class Process:
    """One process that may be killed and started again."""

    name: str
    words: tuple[str, ...]
    log: Path
    env: dict[str, str] = field(default_factory=dict)
    running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **self.env}
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                [sys.executable, "-m", *self.words], stdout=log, stderr=log, env=env
            )

    @property
    def pid(self) -> int:
        assert self.running is not None
        return self.running.pid

    @property
    def is_alive(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self.running is not None
        self.running.send_signal(number)

    def end(self, number: signal.Signals) -> None:
        if self.running is not None and self.running.poll() is None:
            self.running.send_signal(number)
            self.running.wait(60)


class Watcher:
    """Asks every device for a prediction, again and again, and keeps what was wrong."""

    def __init__(self, port: int) -> None:
        self.port, self.num_answers, self.bare = port, 0, []
        self.is_expected, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            content = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"}
            connection.request("GET" if body is None else "POST", path, content, headers)
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())

    def _run(self) -> None:
        x, number = rows(200, seed=3)[0], 0
        while not self._ending.wait(0.05):
            if not self.is_expected.is_set():
                continue
            device = DEVICES[number % len(DEVICES)]
            number += 1
            try:
                body = {"device": device, "rows": x[number % 200 : number % 200 + 1].tolist()}
                status, found = self.ask("/v1/predict", body)
            except (OSError, http.client.HTTPException) as error:
                if self.is_expected.is_set():
                    self.bare.append((device, repr(error)))
                continue
            self.num_answers += 1
            if status != 200 or not found["predictions"][0]["package"]:
                self.bare.append((device, found))

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(60)
