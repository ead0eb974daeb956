"""Certificates: what the authority signs, and who is read out of them."""

import datetime as dt
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.artifacts.identity import (
    DEVICE_LIFETIME_S,
    FleetAuthority,
    create_key,
    fingerprint,
    load_key,
    openssh,
    read_identity,
    request_certificate,
    request_key_fingerprint,
)
from fedretrain.core.errors import DataError

NOW = 1_800_000_000.0
KEY = ec.generate_private_key(ec.SECP256R1())
REQUEST = request_certificate(KEY, "pumps", "pump-17")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return FleetAuthority(tmp_path_factory.mktemp("ca"), now=NOW)


def signed(
    authority, *, common_name="pump-17", uris=("fedretrain://pumps/pump-17",), usage="client", key=KEY
):
    """A certificate that the authority would never make, signed with its key."""
    start = dt.datetime.fromtimestamp(NOW, dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one) for one in common_name.split("|")])
        )
        .issuer_name(authority._certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=1))
    )
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    if usage:
        oids = {"client": "1.3.6.1.5.5.7.3.2", "server": "1.3.6.1.5.5.7.3.1"}
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([x509.ObjectIdentifier(oids[one]) for one in usage.split("+")]), False
        )
    return builder.sign(authority._key, SHA256()).public_bytes(Encoding.PEM)


def test_a_device_is_read_out_of_its_certificate(authority):
    certificate = authority.issue_device(REQUEST, "pumps", "pump-17", now=NOW)
    found = read_identity(certificate)
    assert (found.population, found.device) == ("pumps", "pump-17")
    assert found.expires_at == NOW + DEVICE_LIFETIME_S
    assert found.fingerprint == fingerprint(certificate)
    assert found.key_fingerprint == request_key_fingerprint(REQUEST)


def test_a_renewed_certificate_has_another_fingerprint_and_the_same_key(authority):
    first, second = (
        read_identity(authority.issue_device(REQUEST, "pumps", "pump-17", now=NOW)) for _ in range(2)
    )
    assert first.fingerprint != second.fingerprint
    assert first.key_fingerprint == second.key_fingerprint


def test_the_authority_names_the_device_whatever_the_request_says(authority):
    request = request_certificate(KEY, "fans", "somebody-else")
    found = read_identity(authority.issue_device(request, "pumps", "pump-17", now=NOW))
    assert (found.population, found.device) == ("pumps", "pump-17")


def test_serial_numbers_differ(authority):
    made = [authority.issue_device(REQUEST, "pumps", "pump-17", now=NOW) for _ in range(20)]
    assert len({x509.load_pem_x509_certificate(one).serial_number for one in made}) == 20


def test_neither_device_nor_server_can_sign_for_others(authority):
    for made in (
        authority.issue_device(REQUEST, "pumps", "pump-17", now=NOW),
        authority.issue_server(REQUEST, ["localhost"], now=NOW),
    ):
        extensions = x509.load_pem_x509_certificate(made).extensions
        assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    own = x509.load_pem_x509_certificate(authority.certificate).extensions
    assert own.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(
        ca=True, path_length=0
    )


def test_a_servers_certificate_names_its_hosts_and_is_no_device(authority):
    made = authority.issue_server(REQUEST, ["link.example", "10.0.0.1", "::1"], now=NOW)
    names = (
        x509.load_pem_x509_certificate(made)
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
    )
    assert names.get_values_for_type(x509.DNSName) == ["link.example"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("10.0.0.1"),
        ipaddress.ip_address("::1"),
    ]
    with pytest.raises(DataError, match="not a device's"):
        read_identity(made)


NOBODIES = {
    "other_common_name": {"common_name": "pump-18"},
    "two_common_names": {"common_name": "pump-17|pump-17"},
    "no_uri": {"uris": ()},
    "two_uris": {"uris": ("fedretrain://pumps/pump-17", "fedretrain://fans/pump-17")},
    "other_scheme": {"uris": ("https://pumps/pump-17",)},
    "no_scheme": {"uris": ("pumps/pump-17",)},
    "no_population": {"uris": ("fedretrain:///pump-17",)},
    "user_in_population": {"uris": ("fedretrain://a@pumps/pump-17",)},
    "port_in_population": {"uris": ("fedretrain://pumps:1/pump-17",)},
    "open_bracket": {"uris": ("fedretrain://[pumps/pump-17",)},
    "query": {"uris": ("fedretrain://pumps/pump-17?x=1",)},
    "deeper_path": {"uris": ("fedretrain://pumps/a/pump-17",)},
    "upper_case_scheme": {"uris": ("FEDRETRAIN://pumps/pump-17",)},
    "no_usage": {"usage": ""},
    "server_usage": {"usage": "server"},
    "both_usages": {"usage": "client+server"},
    "edwards_key": {"key": ed25519.Ed25519PrivateKey.generate()},
}


@pytest.mark.parametrize("name", NOBODIES)
def test_a_certificate_of_another_shape_is_nobodys(authority, name):
    with pytest.raises(DataError, match="not a device's"):
        read_identity(signed(authority, **NOBODIES[name]))


def test_the_shape_that_the_table_starts_from_is_a_device(authority):
    assert read_identity(signed(authority)).device == "pump-17"


def test_a_request_that_was_not_signed_with_its_key_is_refused(authority):
    damaged = x509.load_pem_x509_csr(REQUEST).public_bytes(Encoding.DER)
    damaged = damaged[:-1] + bytes([damaged[-1] ^ 1])
    request = x509.load_der_x509_csr(damaged).public_bytes(Encoding.PEM)
    with pytest.raises(DataError, match="not signed with its key"):
        authority.issue_device(request, "pumps", "pump-17", now=NOW)


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)]
)
def test_a_request_for_another_kind_of_key_is_refused(authority, key):
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    with pytest.raises(DataError, match="not for a P-256 key"):
        authority.issue_device(request, "pumps", "pump-17", now=NOW)


@pytest.mark.parametrize(
    ("population", "device"), [("", "a"), ("a", ""), ("a/b", "c"), ("a", "b" * 65), ("a", "../b")]
)
def test_a_name_that_is_none_gets_no_certificate(authority, population, device):
    with pytest.raises(DataError, match="is no name"):
        authority.issue_device(REQUEST, population, device, now=NOW)
    with pytest.raises(DataError, match="is no name"):
        request_certificate(KEY, population, device)


@pytest.mark.parametrize("hosts", [[], [""], ["a b"], ["*.example"], ["-a"], ["\u00e4"]])
def test_a_server_without_a_host_gets_no_certificate(authority, hosts):
    with pytest.raises(DataError, match="host"):
        authority.issue_server(REQUEST, hosts, now=NOW)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_certificate_and_no_request(content):
    for call in (read_identity, fingerprint, request_key_fingerprint):
        with pytest.raises(DataError):
            call(content)


def test_the_authority_is_made_once(tmp_path):
    first = FleetAuthority(tmp_path, now=NOW)
    again = FleetAuthority(tmp_path, now=NOW + 1)
    assert first.certificate == again.certificate
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600


def test_an_authority_of_two_halves_is_refused(tmp_path):
    FleetAuthority(tmp_path / "a", now=NOW)
    FleetAuthority(tmp_path / "b", now=NOW)
    (tmp_path / "a" / "ca.pem").write_bytes((tmp_path / "b" / "ca.pem").read_bytes())
    with pytest.raises(DataError, match=r"not of ca\.key"):
        FleetAuthority(tmp_path / "a", now=NOW)
    (tmp_path / "a" / "ca.pem").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read or made"):
        FleetAuthority(tmp_path / "a", now=NOW)


def test_a_key_file_of_another_kind_is_refused(tmp_path):
    create_key(tmp_path / "device.key")
    assert load_key(tmp_path / "device.key").curve.name == "secp256r1"
    other = ec.generate_private_key(ec.SECP384R1())
    content = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for wrong in (content, b"no key"):
        (tmp_path / "device.key").write_bytes(wrong)
        with pytest.raises(DataError, match="no P-256 private key"):
            load_key(tmp_path / "device.key")


def test_the_same_key_is_what_a_supernode_loads():
    private, public = openssh(KEY)
    assert load_ssh_private_key(private, None).private_numbers() == KEY.private_numbers()
    assert load_ssh_public_key(public).public_numbers() == KEY.public_key().public_numbers()


def test_the_public_key_of_a_request_has_one_form_and_another_kind_of_key_is_refused(tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec as curves
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from fedretrain.artifacts.identity import checked_public_key, public_pem, requested_public_key

    create_key(tmp_path / "a.key")
    key = load_key(tmp_path / "a.key")
    pem = public_pem(key.public_key())
    assert requested_public_key(request_certificate(key, "p", "a")) == pem
    assert checked_public_key(pem.encode()) == pem
    other = curves.generate_private_key(curves.SECP384R1()).public_key()
    for content in (b"", b"nonsense", other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)):
        with pytest.raises(DataError, match="no P-256 public key"):
            checked_public_key(content)
