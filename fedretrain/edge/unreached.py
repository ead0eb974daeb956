"""Why an enrolment is not reached: what a person has to mend is told from a server that is not there yet.

gRPC calls a server whose certificate it does not trust unavailable, in words that change with its release. So the handshake is
looked at once more, with Python's own TLS, which says by a number what is wrong with a certificate.
"""

from __future__ import annotations

import socket
import ssl

from fedretrain.core.errors import ConfigError

LOOK_S = 2.0
"""How long a look may take."""
_CLOCK = (9, 10)
"""OpenSSL's numbers of a certificate that is not valid yet, or no more: a machine without a network may not know the time yet."""
_NAME = (62, 64)
"""Of one that is for another host, or another address."""


def mismatch(address: str, authority: bytes, path: str) -> ConfigError | None:
    """What is wrong with the certificate of a server, for good; None where nothing is, or nobody says.

    Args:
        address: ``host:port``.
        authority: PEM of who should have signed it.
        path: Where that lies.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=authority.decode())
        with (
            socket.create_connection((host, int(port)), timeout=LOOK_S) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _CLOCK:
            return None
        if error.verify_code in _NAME:
            return ConfigError(
                f"the certificate of {address} is for another host",
                where="enrol",
                fix="write a host that the server's listen.hosts names",
            )
        return ConfigError(
            f"the certificate of {address} is not by the fleet's authority",
            where=path,
            fix="copy the ca.pem of this very server there, or correct enrol",
        )
    except (OSError, UnicodeError):
        return None
