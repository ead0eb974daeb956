"""The coordinator's keys and folders: made at the first start, found at every other.

Rules of this file:
    * What is there stays. The root key of the signed list is made in ``keys/offline``: move it to a medium that no server reads.
    * Private files are readable by their owner alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.artifacts.at_rest import StorePlace
from fedretrain.artifacts.identity import FleetAuthority, create_key, load_key, request_certificate
from fedretrain.artifacts.trust.keys import create_keys, load_online
from fedretrain.artifacts.trust.keys import load_key as load_root
from fedretrain.artifacts.trust.repository import TrustRepository
from fedretrain.artifacts.trust.root import first_root
from fedretrain.core.durable import write_whole
from fedretrain.core.errors import DataError
from fedretrain.server.models import Stores

if TYPE_CHECKING:
    from fedretrain.artifacts.trust.keys import OnlineKeys
    from fedretrain.server.config import ServerConfig


@dataclass(frozen=True)
class Keys:
    """What a coordinator signs and shows.

    Attributes:
        authority: Signs certificates of devices.
        online: Keys of the signed list and of assignments.
        trust: The signed list.
        root: Its first root, which devices are given when they enrol.
        server_key: File of the server's private key.
        server_certificate: File of its certificate.
        authority_file: File of the authority's certificate.
    """

    authority: FleetAuthority
    online: OnlineKeys
    trust: TrustRepository
    root: bytes
    server_key: Path
    server_certificate: Path
    authority_file: Path


def open_keys(config: ServerConfig, now: float) -> Keys:
    """The keys of a coordinator; made where they are missing.

    Raises:
        DataError: If they cannot be made or read.
    """
    folder = Path(config.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DataError(
            f"it cannot be made: {error.strerror}", where=str(folder), fix="check its parent"
        ) from error
    authority = FleetAuthority(_made(folder / "authority"), now=now)
    create_keys(_made(folder / "keys"))
    online = load_online(folder / "keys" / "online")
    trust = TrustRepository(_made(folder / "trust"), online)
    first = folder / "keys" / "1.root.json"
    if not first.exists():
        offline = load_root(folder / "keys" / "offline" / "root.pem")
        write_whole(first, first_root(offline, online.public(), now=now))
    root = first.read_bytes()
    if not (folder / "trust" / "1.root.json").exists():
        trust.install_root(root, now)
    tls = _made(folder / "tls")
    create_key(tls / "server.key")
    request = request_certificate(load_key(tls / "server.key"), "coordinator", "server")
    # Made anew at each start: it lives 90 days, and the hosts may be others.
    write_whole(tls / "server.pem", authority.issue_server(request, config.listen.hosts, now=now))
    write_whole(tls / "authority.pem", authority.certificate)
    return Keys(authority, online, trust, root, tls / "server.key", tls / "server.pem", tls / "authority.pem")


def store_places(config: ServerConfig) -> tuple[StorePlace, StorePlace]:
    """Where packages are, and campaigns' states."""
    folder = Path(config.folder)
    beside = str(folder / "keys" / "store.key")
    packages, campaigns = (
        StorePlace(str(folder / name), config.at_rest, beside) for name in ("packages", "campaigns")
    )
    return packages, campaigns


def open_stores(config: ServerConfig) -> Stores:
    """Both stores.

    Raises:
        UserError: If their key cannot be had, or is another one.
    """
    packages, campaigns = store_places(config)
    return Stores(packages.open(), campaigns.open())


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
