"""Whether somebody else has an address already.

gRPC's servers share theirs (SO_REUSEPORT), which is what lets several gateways of one coordinator serve side by side. It would let the coordinator of
another fleet start on it too, without a word, and devices would reach the one or the other.
"""

from __future__ import annotations

import errno
import socket
import time

from fedretrain.core.errors import DataError

PATIENCE_S = 10.0
"""A gateway whose coordinator was killed is gone within so long."""
_LOOK_S = 0.2


def check_free(address: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until nobody listens on an address.

    Args:
        address: ``host:port``; port 0 is always free.
        patience_s: So long.

    Raises:
        DataError: If somebody still does. An address that cannot be had for another reason is gRPC's to refuse.
    """
    until = time.monotonic() + patience_s
    while _is_taken(address):
        if time.monotonic() >= until:
            raise DataError(
                f"somebody else listens on {address}",
                where="server",
                fix="end that, or choose a free address",
            )
        time.sleep(_LOOK_S)


def _is_taken(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, where = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # connections that have ended do not count
            probe.bind(where)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False
