"""An agent's local API over HTTP, on one connection that is kept open."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_LATER = (429, 503)  # too many requests, or it is not ready: the same request may succeed later


class Outcome(StrEnum):
    """What became of a request."""

    DONE = "done"
    REFUSED = "refused"  # the agent said no: asking again would change nothing
    DOWN = "down"  # nobody answered, or it is busy: ask again later


@dataclass(frozen=True)
class Answer:
    """What an agent said.

    Attributes:
        outcome: What became of the request.
        content: The answer's JSON object, if it is done.
    """

    outcome: Outcome
    content: dict[str, Any]


class Client:
    """A connection to one agent; for one thread.

    Args:
        address: ``host:port``.
        timeout_s: How long it is waited for.
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        host, port = address.rsplit(":", 1)
        self._connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout_s)

    def post(self, path: str, body: dict[str, Any]) -> Answer:
        """Ask once. A connection that broke is opened anew by the next call."""
        headers = {"Content-Type": "application/json"}
        try:
            self._connection.request("POST", path, json.dumps(body).encode(), headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return Answer(Outcome.DOWN, {})
        if response.status in _LATER:
            return Answer(Outcome.DOWN, {})
        found = _object(content)
        if response.status >= http.client.BAD_REQUEST or found is None:
            return Answer(Outcome.REFUSED, {})
        return Answer(Outcome.DONE, found)

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()


def _object(content: bytes) -> dict[str, Any] | None:
    """The JSON object of an answer; an empty one is none said; None if it is something else."""
    if not content:
        return {}
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
