"""``[[mqtt]]`` and ``[[kafka]]`` of `server.toml`: brokers from which telemetry comes, too.

Rules of this file:
    * TLS unless `plain` says otherwise, which is for one machine and for development.
    * The broker says who may write where: its access control stands where the device API has certificates. With MQTT the
      topic names the device, with Kafka a message's key does.
    * Passwords are in files of their own, not in `server.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fedretrain.core.checks import positive, require
from fedretrain.core.errors import ConfigError
from fedretrain.core.ids import is_name
from fedretrain.core.toml_file import check_address, under

if TYPE_CHECKING:
    from collections.abc import Iterable

DEVICE = "{device}"
_FILES = ("authority", "certificate", "key", "password_file")


class Mechanism(StrEnum):
    """How a user shows its password to Kafka."""

    PLAIN = "PLAIN"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"


@dataclass(frozen=True)
class Source:
    """What both kinds have.

    Attributes:
        name: Of the source: its counts and its position are kept under it.
        population: Whose devices send.
        samples: Where raw samples come from (`wire.samples`); empty: nowhere.
        records: Where batches of devices with our agent come from (`TelemetryBatch`); empty: nowhere.
        plain: Without TLS. For one machine and for development only.
        authority: PEM of who signed the broker's certificate; empty: the system's authorities.
        certificate: PEM that we show; empty: none.
        key: Of that certificate.
        username: Whom we log in as; empty: nobody.
        password_file: Holds the password on its first line.
    """

    name: str
    population: str
    samples: str = ""
    records: str = ""
    plain: bool = False
    authority: str = ""
    certificate: str = ""
    key: str = ""
    username: str = ""
    password_file: str = ""

    def __post_init__(self) -> None:
        require(is_name(self.name), f"{self.name!r} is no name", key="name", fix="letters, digits, . _ -")
        some = bool(self.samples or self.records)
        require(some, "it takes nothing", key="samples", fix="name where samples or records come from")
        both = bool(self.certificate) == bool(self.key)
        require(both, "a certificate and its key go together", key="certificate", fix="name both, or none")
        ok = bool(self.username) == bool(self.password_file)
        require(ok, "a user and a password go together", key="username", fix="name both, or none")
        tls = not (self.plain and (self.authority or self.certificate))
        require(tls, "keys, and no TLS to use them in", key="plain", fix="leave plain out")

    @property
    def password(self) -> str:
        """The first line of its file; empty where nobody logs in."""
        if not self.password_file:
            return ""
        try:
            return Path(self.password_file).read_text().split("\n", 1)[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"it cannot be read: {error}", where=self.password_file, fix="correct the file"
            ) from error


@dataclass(frozen=True)
class Mqtt(Source):
    """A broker of MQTT 5. ``samples`` and ``records`` are topics with one level ``{device}``.

    Attributes:
        address: ``host:port``.
        client: How we call ourselves there, so that it keeps messages while we are away; empty: after the source's name.
        session_s: For how long it shall keep them.
        max_pending: Messages that we have not acknowledged, at most.
    """

    address: str = "127.0.0.1:8883"
    client: str = ""
    session_s: float = 7 * 86_400.0
    max_pending: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        check_address("address", self.address)
        positive("session_s", self.session_s)
        ok = 0 < self.max_pending < 2**16
        require(ok, f"{self.max_pending} messages", key="max_pending", fix="give 1 to 65535")
        for key in ("samples", "records"):
            levels = getattr(self, key).split("/") if getattr(self, key) else [DEVICE]
            ok = levels.count(DEVICE) == 1 and not {"#", "+"} & set("".join(levels))
            require(
                ok, "a topic that does not name the device", key=key, fix="write it as plant/{device}/samples"
            )


@dataclass(frozen=True)
class Kafka(Source):
    """A Kafka cluster. ``samples`` and ``records`` are topics; the key of a message is the device's name.

    Attributes:
        servers: ``host:port`` of some of its brokers.
        mechanism: How `username` logs in.
    """

    servers: tuple[str, ...] = ("127.0.0.1:9092",)
    mechanism: Mechanism = Mechanism.SCRAM_SHA_512

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "servers", tuple(self.servers))
        require(bool(self.servers), "no broker", key="servers", fix="name one at least")
        for server in self.servers:
            check_address("servers", server)
        require(self.samples != self.records, "one topic for two things", key="records", fix="name another")


SourceT = TypeVar("SourceT", bound=Source)


def placed(source: SourceT, base: Path) -> SourceT:
    """The source with paths as its file means them."""
    return replace(
        source,
        authority=under(base, source.authority),
        certificate=under(base, source.certificate),
        key=under(base, source.key),
        password_file=under(base, source.password_file),
    )


def check_sources(sources: Iterable[Source], populations: Iterable[str]) -> None:
    """Refuse sources that share a name, or are of no population.

    Raises:
        ConfigError: Then.
    """
    known, names = sorted(populations), set[str]()
    for one in sources:
        kind = "mqtt" if isinstance(one, Mqtt) else "kafka"
        require(
            one.population in known,
            f"there is no population {one.population!r}",
            key=f"{kind}.population",
            fix=f"name one of {known}",
        )
        require(
            one.name not in names,
            f"two sources are called {one.name!r}",
            key=f"{kind}.name",
            fix="rename one",
        )
        names.add(one.name)


def check_source(source: Source) -> str:
    """Check what only this machine can tell; what was found.

    Raises:
        ConfigError: If a file is missing, or the library.
    """
    extra, library = ("mqtt", "aiomqtt") if isinstance(source, Mqtt) else ("kafka", "aiokafka")
    for key in _FILES:
        path = getattr(source, key)
        if path and not Path(path).is_file():
            raise ConfigError(
                f"there is no {path}", where=f"{extra}.{source.name}.{key}", fix="correct the path"
            )
    if find_spec(library) is None:
        raise ConfigError(
            f"it needs {library}, which is not installed",
            where=f"{extra}.{source.name}",
            fix=f"pip install 'fedretrain[{extra}]'",
        )
    server = source.address if isinstance(source, Mqtt) else ", ".join(getattr(source, "servers", ()))
    return f"{server}, {'plain' if source.plain else 'TLS'}, for {source.population}"
