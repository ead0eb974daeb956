"""The local API: JSON over HTTP on the loopback interface, and the same over a Unix socket.

Rules of this file:
    * For programs and people on the device alone. A request that names another host, or comes from a web page of another
      origin, is refused: a browser on the device must not become a way in.
    * Everything is bounded: bodies, requests a second, connections, and the time that a connection may be idle.
    * What a person did wrong is a line with what, where and how to mend it; it never ends the server.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import parse_qs, urlsplit

import numpy as np

from fedretrain.core.build import plain
from fedretrain.core.errors import DataError, FedretrainError, UserError
from fedretrain.core.rate import RateLimit
from fedretrain.edge.config import is_loopback
from fedretrain.edge.status import not_enrolled

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.edge.agent import Agent
    from fedretrain.edge.config import ApiConfig
    from fedretrain.edge.device import DeviceRuntime

MAX_CONNECTIONS = 64
IDLE_S = 30.0
MAX_RECENT = 200
_log = logging.getLogger(__name__)


class _RefusedError(Exception):
    """A request that is not carried out."""

    def __init__(self, status: HTTPStatus, what: str) -> None:
        super().__init__(what)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One connection. What it serves is set by `LocalApi`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = (
        True  # headers and body are two writes: with it each answer waits 40 ms for an acknowledgement
    )
    server_version = "fedretrain"
    sys_version = ""
    timeout = IDLE_S
    api: ClassVar[LocalApi]
    is_socket: ClassVar[bool] = False

    def do_GET(self) -> None:
        """Status, recent predictions, the label page."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Predictions and labels."""
        self._answer(self._post)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """To the log, at its lowest level."""
        _log.debug(format, *args)

    def address_string(self) -> str:
        """A Unix socket has no address."""
        return "local"

    def _answer(self, work: Callable[[], Any]) -> None:
        try:
            self._admit()
            content = work()
            status = HTTPStatus.OK
        except _RefusedError as error:
            status, content = error.status, {"error": str(error)}
            self.close_connection = True  # a body may be unread
        except UserError as error:
            status, content = HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except FedretrainError as error:
            status, content = HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)}
        if isinstance(content, bytes):
            self._send(status, content, "text/html; charset=utf-8")
        else:
            self._send(status, json.dumps(content, allow_nan=False).encode(), "application/json")

    def _admit(self) -> None:
        """Who may ask, and how often."""
        if not self.is_socket:
            host = self.headers.get("Host", "")
            if not is_loopback(_hostname(host)):
                raise _RefusedError(HTTPStatus.FORBIDDEN, f"the host {host!r:.100} is not this machine")
            origin = self.headers.get("Origin")
            if origin is not None and urlsplit(origin).netloc != host:
                raise _RefusedError(HTTPStatus.FORBIDDEN, "a page of another origin")
        if not self.api.limit.allows():
            raise _RefusedError(HTTPStatus.TOO_MANY_REQUESTS, "too many requests a second")

    def _get(self) -> Any:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/":
            return files("fedretrain.edge").joinpath("label_page.html").read_bytes()
        if parts.path == "/healthz":
            return {"ok": True}
        if parts.path == "/v1/status":
            agent = self.api.agent
            found = [plain(one.status()) for one in list(agent.devices.values())]
            outside = [not_enrolled(one, str(agent.mistakes.get(one, ""))) for one in agent.waiting]
            return {"devices": [*found, *outside]}
        if parts.path == "/v1/predictions":
            return recent(self.api.agent.device(query.get("device", "")), query.get("limit", "50"))
        if parts.path == "/v1/lineage":
            device, version = self.api.agent.device(query.get("device", "")), query.get("version", "")
            uses = plain(device.lineage(version))
            return {"device": device.joined.device, "version": version, "uses": uses}
        raise _RefusedError(HTTPStatus.NOT_FOUND, f"there is no {parts.path:.100}")

    def _post(self) -> Any:
        if self.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        body = self._body()
        device = self.api.agent.device(_text(body, "device", ""))
        if self.path == "/v1/predict":
            return predict(device, body)
        if self.path == "/v1/labels":
            return label(device, body)
        raise _RefusedError(HTTPStatus.NOT_FOUND, f"there is no {self.path:.100}")

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "say how long the body is")
        if int(length) > self.api.config.max_body_bytes:
            most = self.api.config.max_body_bytes
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes; {most} is the most")
        try:
            found = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError, OSError):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
        if not isinstance(found, dict):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
        return found

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        with contextlib.suppress(OSError):  # whoever asked may be gone
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'")
            self.end_headers()
            self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    """A server of few connections, each in a thread that ends with the process."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *args: Any) -> None:
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        _log.warning("a request failed", exc_info=True)


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", 0


class LocalApi:
    """The endpoints of an agent. Start it, or use it as a context manager.

    Args:
        agent: Whose devices answer.
        config: Where, and how much.

    Attributes:
        limit: Of all endpoints together.
    """

    def __init__(self, agent: Agent, config: ApiConfig) -> None:
        self.agent, self.config = agent, config
        self.limit = RateLimit(config.requests_per_s, config.burst)
        self._servers: list[_Server] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """Of the HTTP endpoint."""
        return int(next(one for one in self._servers if one.address_family != socket.AF_UNIX).server_port)

    def start(self) -> None:
        """Listen.

        Raises:
            DataError: If an address cannot be listened on.
        """
        handler = type("_Handler", (Handler,), {"api": self})
        if self.config.http:
            host, port = self.config.http.rsplit(":", 1)
            self._listen(self.config.http, lambda: _Server((host.strip("[]"), int(port)), handler))
        if self.config.socket:
            path = Path(self.config.socket)
            _remove_stale(path)
            # A Unix socket has no Nagle algorithm, and refuses to be told of it.
            about = {"is_socket": True, "disable_nagle_algorithm": False}
            on_socket = type("_SocketHandler", (handler,), about)
            self._listen(self.config.socket, lambda: _UnixServer(str(path), on_socket))
            path.chmod(0o660)  # whoever may use the folder's group may ask

    def _listen(self, where: str, make: Callable[[], _Server]) -> None:
        try:
            server = make()
        except OSError as error:
            self.close()
            raise DataError(
                f"cannot listen on {where}: {error.strerror or error}",
                where="api",
                fix="choose a free address, or end the other agent",
            ) from error
        self._servers.append(server)
        threading.Thread(target=server.serve_forever, name=f"api {where}", daemon=True).start()

    def close(self) -> None:
        """Stop listening; may be called again."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.shutdown()
            server.server_close()
            if server.address_family == socket.AF_UNIX:
                Path(str(server.server_address)).unlink(missing_ok=True)


def _is_numbers(given: Any) -> bool:
    """Whether nested lists hold numbers and nulls alone: numpy would take true for 1, and "1" too."""
    kinds = set(map(type, given))
    while kinds == {list}:  # level by level: it costs about what making the array does
        given = list(chain.from_iterable(given))
        kinds = set(map(type, given))
    return kinds <= {int, float, NoneType}


def _known(said: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Raise a `DataError` for the first key that is none of these."""
    unknown = next((key for key in said if key not in keys), None)
    if unknown is not None:
        raise DataError(
            f"there is no key {unknown!r:.100}", where="body", fix=f"known keys: {', '.join(keys)}"
        )


def predict(device: DeviceRuntime, body: dict[str, Any]) -> dict[str, Any]:
    """Answer the samples of a request.

    Raises:
        DataError: If they are no samples of this device.
    """
    _known(body, ("device", "rows", "samples"))
    samples = body.get("samples")
    if samples is not None and not (
        isinstance(samples, list) and all(isinstance(one, str) for one in samples)
    ):
        raise DataError("the names of samples are not a list of texts", where="samples")
    try:
        rows = np.array(body.get("rows"), dtype=np.float32)  # null is a missing value
    except (ValueError, TypeError, OverflowError):
        rows = np.zeros(0, dtype=np.float32)
    if rows.ndim < 2:
        raise DataError("there are no samples", where="rows", fix='send {"rows": [[...], ...]}')
    if not _is_numbers(body["rows"]):
        raise DataError(
            "a sample is not all numbers", where="rows", fix="send numbers; null is a missing value"
        )
    outputs = device.outputs
    return {
        "predictions": [
            {
                "id": one.id,
                "label": one.label,
                "name": outputs[one.label] if 0 <= one.label < len(outputs) else "",
                "confidence": one.confidence if math.isfinite(one.confidence) else 0.0,
                "package": one.package,
            }
            for one in device.predict(rows, samples)
        ]
    }


def label(device: DeviceRuntime, body: dict[str, Any]) -> dict[str, Any]:
    """Take the labels of a request: a list of `labels`, or one.

    Raises:
        DataError: If one is not understood; those before it are taken.
    """
    if "labels" in body:
        _known(body, ("device", "labels"))
    given = body.get("labels", [{key: value for key, value in body.items() if key != "device"}])
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise DataError("there are no labels", where="labels", fix='send {"of": ID, "label": NUMBER}')
    return {"labelled": [list(_label(device, one)) for one in given]}


def _label(device: DeviceRuntime, said: dict[str, Any]) -> tuple[str, ...]:
    _known(said, ("of", "label", "source", "confidence"))
    if "label" not in said:
        raise DataError("no label", where="label", fix="give a class, its name, or null to withdraw")
    value, outputs = said["label"], device.outputs
    if isinstance(value, str):
        if value not in outputs:
            raise DataError(f"there is no class {value!r:.100}", where="label", fix=", ".join(outputs))
        value = outputs.index(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise DataError(f"{value!r:.100} is no class", where="label")
    confidence = said.get("confidence", 1.0)
    if not isinstance(confidence, int | float) or isinstance(confidence, bool):
        raise DataError(f"{confidence!r:.100} is no number", where="confidence")
    return device.label(_text(said, "of"), value, _text(said, "source", "api"), float(confidence))


def recent(device: DeviceRuntime, limit: str) -> dict[str, Any]:
    """The newest predictions, for the label page.

    Raises:
        DataError: If the limit is no number.
    """
    if not limit.isdigit():
        raise DataError(f"{limit!r:.20} is no number", where="limit")
    names = ("id", "sample", "at", "version", "predicted", "confidence", "label", "source")
    found = device.recent(min(int(limit), MAX_RECENT))
    return {
        "device": device.joined.device,
        "outputs": list(device.outputs),
        "predictions": [dict(zip(names, row, strict=True)) for row in found],
    }


def _text(body: dict[str, Any], key: str, default: str | None = None) -> str:
    value = body.get(key, default)
    if not isinstance(value, str):
        raise DataError(f"{value!r:.100} is no text", where=key)
    return value


def _hostname(host: str) -> str:
    return host.rsplit(":", 1)[0] if not host.endswith("]") else host


def _remove_stale(path: Path) -> None:
    """A socket that nobody listens on; another file is left alone, and listening fails."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
