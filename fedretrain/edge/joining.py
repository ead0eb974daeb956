"""A logical device's place in its fleet: enrolled once, kept on the disk.

Rules of this file:
    * The key is made on the device and stays there. The token is used once; what it brought is kept whole or not at all.
    * Nobody there is another thing than a mistake: a token that is refused, or an authority that did not sign, is a person's to mend.
    * A device that has a certificate asks nobody who it is: it starts without a network.
    * A certificate is renewed for the same key before it expires; one that has expired needs a new token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.x509 import load_pem_x509_certificates

from fedretrain.artifacts.encryption import create_key as create_sealing_key
from fedretrain.artifacts.encryption import load_key as load_sealing_key
from fedretrain.artifacts.encryption import public_half
from fedretrain.artifacts.identity import (
    create_key,
    load_key,
    openssh,
    public_pem,
    read_identity,
    request_certificate,
)
from fedretrain.artifacts.private_files import make_private, read_private
from fedretrain.core.build import build, plain
from fedretrain.core.durable import write_whole
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.edge.control import ControlError, Credentials, enrol
from fedretrain.edge.unreached import mismatch
from fedretrain.wire.control import PROTOCOL
from fedretrain.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    import threading

    from fedretrain.edge.config import DeviceConfig, EdgeConfig
    from fedretrain.edge.control import ControlClient

JOINED, KEY, SUPERNODE_KEY, SEALING_KEY = "joined.json", "device.key", "supernode.key", "sealing.key"
METHODS = ("fedavg", "fedper", "fedrep")
"""Personalization methods that the agent serves and re-fits by itself, without `fedretrain[train]`."""
_MORE_METHODS = ("apfl", "ditto", "finetune")


@dataclass(frozen=True)
class Joined:
    """What enrolment brought.

    Attributes:
        population: The fleet.
        device: The device's id in it.
        number: Its number: what training calls it.
        certificate: PEM.
        authority: PEM of the fleet's authority.
        root: The first root of the trust metadata, as text.
        control: ``host:port`` of the device API.
    """

    population: str
    device: str
    number: int
    certificate: str
    authority: str
    root: str
    control: str


def read_joined(folder: Path) -> Joined | None:
    """What is kept of an earlier enrolment; None if there was none.

    Raises:
        DataError: If the file is damaged.
    """
    path = folder / JOINED
    try:
        return build(Joined, json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise DataError(
            "the device's certificate cannot be read",
            where=str(path),
            fix="remove it and enrol with a new token",
        ) from error


def join(
    config: EdgeConfig, device: DeviceConfig, folder: Path, ending: threading.Event | None = None
) -> Joined:
    """The device's place in the fleet: from the disk, or by its token.

    Args:
        config: The agent's.
        device: Which.
        folder: Its own.
        ending: Once set, nobody is asked any longer.

    Raises:
        ConfigError: If it has neither certificate nor token, the token is refused, or the authority is another fleet's.
        ControlError: If the enrolment cannot be reached: it may be later.
        DataError: If something cannot be read or written.
    """
    found = read_joined(folder)
    if found is not None:
        return found
    token = _token(device)
    create_key(folder / KEY)
    authority = read_authority(config)
    try:
        reply = enrol(config.enrol, authority, _request(config, device, folder, token), ending=ending)
    except ControlError as error:
        ends = ending is not None and ending.is_set()
        mistake = None if ends else _in_vain(error, config, device, authority)
        if mistake is None:
            raise
        raise mistake from error
    joined = Joined(
        reply.population,
        reply.device,
        reply.number,
        reply.certificate.decode(),
        reply.authority.decode(),
        reply.root_metadata.decode(),
        reply.control_address,
    )
    if joined.device != device.name:
        raise ConfigError(
            f"the token is for the device {joined.device}", where=device.name, fix="use the device's own"
        )
    _write(folder / JOINED, json.dumps(plain(joined)).encode())
    return joined


def _request(config: EdgeConfig, device: DeviceConfig, folder: Path, token: str) -> pb.EnrolRequest:
    """What a device says of itself when it enrols."""
    # The token says the population, which is not known here; the authority takes only the key from a request.
    return pb.EnrolRequest(
        protocol=PROTOCOL,
        token=token,
        certificate_request=request_certificate(load_key(folder / KEY), "unknown", device.name),
        traits=pb.DeviceTraits(
            device_type=device.device_type,
            site=device.site,
            person=device.person,
            trains=device.trains,
            methods=[*METHODS, *(_MORE_METHODS if device.trains else ())],
            node_key=_node_key(config).encode(),
            sealing_key=_sealing_half(folder),
        ),
    )


def _in_vain(
    error: ControlError, config: EdgeConfig, device: DeviceConfig, authority: bytes
) -> ConfigError | None:
    """What a person has to mend before it is worth asking again; None where nobody was there."""
    if error.is_refusal:
        return ConfigError(
            f"{config.enrol} does not enrol the device {device.name}: {error.said}",
            where="devices.token_file" if device.token_file else "devices.token",
            fix=f"ask an operator for a new one: `fedretrain enrol {device.name}`",
        )
    return None if error.is_silence else mismatch(config.enrol, authority, config.authority)


def renewal_at(joined: Joined) -> float:
    """When the certificate is to be renewed: with a third to a sixth of its life left, by its own draw, so that a fleet does not come at once.

    Raises:
        DataError: If the certificate cannot be read.
    """
    own = read_identity(joined.certificate.encode())
    draw = int(own.fingerprint[:8], 16) / 2**32
    return own.expires_at - (own.expires_at - own.begins_at) * (1.0 + draw) / 6.0


def renew(client: ControlClient, folder: Path, joined: Joined) -> Joined:
    """The next certificate for the same key, kept whole before the present one is left.

    Raises:
        ControlError: If there is none.
        DataError: If what came is no certificate of this device and key, or cannot be kept.
    """
    request = pb.RenewRequest(
        protocol=PROTOCOL,
        certificate_request=request_certificate(load_key(folder / KEY), joined.population, joined.device),
        sealing_key=_sealing_half(folder),
    )
    certificate = client.renew(request).certificate
    own, new = read_identity(joined.certificate.encode()), read_identity(certificate)
    same = (new.population, new.device, new.key_fingerprint)
    if same != (own.population, own.device, own.key_fingerprint):
        raise DataError(
            "the new certificate is another device's", where=joined.control, fix="ask an operator"
        )
    renewed = replace(joined, certificate=certificate.decode())
    _write(folder / JOINED, json.dumps(plain(renewed)).encode())
    return renewed


def _sealing_half(folder: Path) -> bytes:
    """The public half of the key for which files are sealed; made if it is not there."""
    create_sealing_key(folder / SEALING_KEY)
    return public_half(load_sealing_key(folder / SEALING_KEY))


def credentials(folder: Path, joined: Joined) -> Credentials:
    """What the device shows, and whom it trusts.

    Raises:
        DataError: If the key cannot be read.
    """
    key, sealing = read_private(folder / KEY), folder / SEALING_KEY
    opens = load_sealing_key(sealing) if sealing.exists() else b""
    return Credentials(key, joined.certificate.encode(), joined.authority.encode(), opens)


def supernode_key(folder: Path) -> Path:
    """The device's key as a file in the form that Flower takes.

    Raises:
        DataError: If the key cannot be read or written.
    """
    path = folder / SUPERNODE_KEY
    make_private(path, lambda: openssh(load_key(folder / KEY))[0])
    return path


def _node_key(config: EdgeConfig) -> str:
    """The public key of the agent's one SuperNode: its first device's, made now if that has not enrolled yet."""
    path = Path(config.folder) / config.devices[0].name / KEY
    create_key(path)
    return public_pem(load_key(path).public_key())


def _token(device: DeviceConfig) -> str:
    if device.token:
        return device.token
    if not device.token_file:
        raise ConfigError(
            f"the device {device.name} is not enrolled and has no token",
            where="devices.token",
            fix="ask an operator for one: `fedretrain enrol`",
        )
    try:
        return Path(device.token_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the token cannot be read: {error}", where=device.token_file, fix="correct devices.token_file"
        ) from error


def read_authority(config: EdgeConfig) -> bytes:
    """PEM of the fleet's authority.

    Raises:
        ConfigError: If the file cannot be read, or holds no certificate: gRPC would call the coordinator unavailable.
    """
    try:
        content = Path(config.authority).read_bytes()
        load_pem_x509_certificates(content)
    except ValueError as error:
        raise ConfigError(
            "the fleet's authority is no certificate",
            where=config.authority,
            fix="copy the server's ca.pem there",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"the fleet's authority cannot be read: {error.strerror}",
            where=config.authority,
            fix="copy the server's ca.pem there",
        ) from error
    return content


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise DataError(
            f"it cannot be written: {error.strerror}", where=str(path), fix="check disk and rights"
        ) from error
