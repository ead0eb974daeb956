"""Who a device is: one P-256 key, a certificate that the fleet's authority signed for it, and how to read it.

Rules of this file:
    * A device makes its key itself; the key never leaves it. The same key serves mutual TLS and Flower's SuperNode (which wants it in OpenSSH's format).
    * A certificate names its device twice, as common name and as ``fedretrain://population/device``; one where they differ is nobody's.
    * The authority decides what a certificate says. Of a request it takes the public key, proved by the request's signature, and nothing else.
    * Whether a device was revoked is the caller's matter: the server asks its registry on each call.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedretrain.artifacts.private_files import make_private, read_private
from fedretrain.core.clock import DAY_S
from fedretrain.core.durable import write_whole
from fedretrain.core.errors import DataError
from fedretrain.core.ids import is_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

AUTHORITY_LIFETIME_S = 10 * 365 * DAY_S
DEVICE_LIFETIME_S = 365 * DAY_S
SERVER_LIFETIME_S = 90 * DAY_S

_SCHEME = "fedretrain"
_BACKDATE = timedelta(days=1)  # a device's clock may be behind when it first meets the server
_MAX_BYTES = 64_000
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


@dataclass(frozen=True)
class DeviceIdentity:
    """What a certificate says of a device. The TLS library has checked who signed it.

    Attributes:
        population: Its fleet.
        device: Its id.
        fingerprint: SHA-256 of the certificate (DER), in hexadecimal.
        key_fingerprint: SHA-256 of its public key (DER), by which a registry knows it: stays when the certificate is renewed.
        begins_at: When the certificate begins.
        expires_at: When it ends.
    """

    population: str
    device: str
    fingerprint: str
    key_fingerprint: str
    begins_at: float
    expires_at: float


def create_key(path: Path) -> None:
    """Make a P-256 key file (PKCS #8), unless it is there.

    Raises:
        DataError: If it cannot be written.
    """
    make_private(path, lambda: _private_pem(ec.generate_private_key(ec.SECP256R1())))


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in a file.

    Raises:
        DataError: If it is missing, readable by others, or no P-256 key.
    """
    try:
        key = load_pem_private_key(read_private(path), None)
    except _UNREADABLE:
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise DataError(
            "the file holds no P-256 private key", where=str(path), fix="restore it, or enrol again"
        )
    return key


def openssh(key: ec.EllipticCurvePrivateKey) -> tuple[bytes, bytes]:
    """The same key as Flower's SuperNode takes it: private half, public half."""
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def request_certificate(key: ec.EllipticCurvePrivateKey, population: str, device: str) -> bytes:
    """A signing request (PEM) for the authority.

    Raises:
        DataError: If a name cannot be one.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(_checked(device, "device")))
    uri = x509.UniformResourceIdentifier(_uri(population, device))
    return (
        builder.add_extension(x509.SubjectAlternativeName([uri]), False)
        .sign(key, SHA256())
        .public_bytes(Encoding.PEM)
    )


def request_key_fingerprint(request: bytes) -> str:
    """The key that a request is for (see `DeviceIdentity.key_fingerprint`).

    Raises:
        DataError: If the request cannot be read, is not for a P-256 key, or was not signed with it.
    """
    return _key_fingerprint(_requested_key(request))


def requested_public_key(request: bytes) -> str:
    """The public key that a request is for, as PEM: what a SuperNode with the same key is known by.

    Raises:
        DataError: As `request_key_fingerprint`.
    """
    return public_pem(_requested_key(request))


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """A public key as PEM (SubjectPublicKeyInfo)."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def checked_public_key(content: bytes) -> str:
    """A public key that somebody sent, in the one form of `public_pem`.

    Raises:
        DataError: If it is no P-256 key.
    """
    try:
        key = load_pem_public_key(content[:_MAX_BYTES])
    except _UNREADABLE as error:
        raise _no_key() from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _no_key()
    return public_pem(key)


def _no_key() -> DataError:
    return DataError("the bytes are no P-256 public key", where="node key", fix="send the key's PEM")


def read_identity(certificate: bytes) -> DeviceIdentity:
    """Who a peer's certificate (PEM) names. Call it on one that the TLS library verified.

    Raises:
        DataError: If it is not a device's.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate[:_MAX_BYTES])
        uris = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = uris.get_values_for_type(x509.UniformResourceIdentifier)
        (name,) = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        key = found.public_key()
    except (*_UNREADABLE, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise _nobody() from error
    population, _, device = uri.removeprefix(f"{_SCHEME}://").partition("/")
    is_ours = (
        is_name(population) and is_name(device) and uri == _uri(population, device) and name.value == device
    )
    if (
        not is_ours
        or list(usage) != [ExtendedKeyUsageOID.CLIENT_AUTH]
        or not isinstance(key, ec.EllipticCurvePublicKey)
    ):
        raise _nobody()
    begins_at, expires_at = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
    shown = fingerprint(certificate)
    return DeviceIdentity(population, device, shown, _key_fingerprint(key), begins_at, expires_at)


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a certificate (PEM in, its DER hashed), in hexadecimal.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return x509.load_pem_x509_certificate(certificate[:_MAX_BYTES]).fingerprint(SHA256()).hex()
    except _UNREADABLE as error:
        raise DataError("the bytes are no certificate", where="certificate", fix="fetch it again") from error


class FleetAuthority:
    """The fleet's certificate authority: ``ca.key`` and ``ca.pem`` in one folder. What is there stays.

    Args:
        folder: Where they are; made if they are not there.
        now: Instant, for a new certificate of its own.

    Raises:
        DataError: If they cannot be read or made, or do not belong together.
    """

    def __init__(self, folder: Path, *, now: float) -> None:
        create_key(folder / "ca.key")
        self._key = load_key(folder / "ca.key")
        path = folder / "ca.pem"
        try:
            if not path.exists():
                write_whole(path, self._own(now))
            self._certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, *_UNREADABLE) as error:
            raise DataError(
                f"the authority cannot be read or made: {error}", where=str(path), fix="restore it"
            ) from error
        if self._certificate.public_key() != self._key.public_key():
            raise DataError("ca.pem is not of ca.key", where=str(folder), fix="restore both from one copy")

    @property
    def certificate(self) -> bytes:
        """The authority's own certificate (PEM): what devices and servers trust."""
        return self._certificate.public_bytes(Encoding.PEM)

    def issue_device(
        self,
        request: bytes,
        population: str,
        device: str,
        *,
        now: float,
        lifetime_s: float = DEVICE_LIFETIME_S,
    ) -> bytes:
        """A device's certificate (PEM) for the key of its request; the names are the caller's, from the enrolment token.

        Raises:
            DataError: If the request cannot be read or was not signed with its key, or a name cannot be one.
        """
        names = [x509.UniformResourceIdentifier(_uri(population, device))]
        return self._issue(
            _requested_key(request), device, names, ExtendedKeyUsageOID.CLIENT_AUTH, now, lifetime_s
        )

    def issue_server(
        self, request: bytes, hosts: Sequence[str], *, now: float, lifetime_s: float = SERVER_LIFETIME_S
    ) -> bytes:
        """A server's certificate (PEM) for host names and IP addresses.

        Raises:
            DataError: If the request cannot be read, or no host is given.
        """
        if not hosts:
            raise DataError(
                "a server's certificate names no host", where="hosts", fix="give names or IP addresses"
            )
        names = [_host(host) for host in hosts]
        return self._issue(
            _requested_key(request), "server", names, ExtendedKeyUsageOID.SERVER_AUTH, now, lifetime_s
        )

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        common_name: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        now: float,
        lifetime_s: float,
    ) -> bytes:
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = _builder(_subject(common_name), self._certificate.subject, key, now, lifetime_s)
        made = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(_key_usage(digital_signature=True), True)
            .add_extension(x509.ExtendedKeyUsage([usage]), False)
            .add_extension(x509.SubjectAlternativeName(names), False)
            .add_extension(own, False)
            .sign(self._key, SHA256())
        )
        return made.public_bytes(Encoding.PEM)

    def _own(self, now: float) -> bytes:
        subject = _subject("fedretrain fleet authority")
        made = (
            _builder(subject, subject, self._key.public_key(), now, AUTHORITY_LIFETIME_S)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), True)
            .sign(self._key, SHA256())
        )
        return made.public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, lifetime_s: float
) -> x509.CertificateBuilder:
    begin = datetime.fromtimestamp(int(now), UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _BACKDATE)
        .not_valid_after(begin + timedelta(seconds=lifetime_s))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
    )


def _key_usage(**allowed: bool) -> x509.KeyUsage:
    names = (
        *(
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
        ),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})


def _requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    try:
        found = x509.load_pem_x509_csr(request[:_MAX_BYTES])
        key = found.public_key()
        is_signed = found.is_signature_valid
    except (*_UNREADABLE, InvalidSignature) as error:
        raise DataError("the bytes are no signing request", where="request", fix="make a new one") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise DataError(
            "the request is not for a P-256 key", where="request", fix="make one with a device's key"
        )
    if not is_signed:
        raise DataError("the request was not signed with its key", where="request", fix="make a new one")
    return key


def _key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _uri(population: str, device: str) -> str:
    return f"{_SCHEME}://{_checked(population, 'population')}/{_checked(device, 'device')}"


def _checked(name: str, key: str) -> str:
    if not is_name(name):
        raise DataError(f"{name!r:.200} is no name", where=key, fix="give letters, digits, . _ -")
    return name


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if _HOST.fullmatch(host) is None:
            raise DataError(
                f"{host!r:.200} is no host name", where="hosts", fix="give a name or an IP address"
            ) from None
        return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _nobody() -> DataError:
    return DataError(
        "the certificate is not a device's of this fleet", where="certificate", fix="enrol the device"
    )
