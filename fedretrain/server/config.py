"""`server.toml`: where the coordinator listens, where it keeps things, and whose models it looks after.

Rules of this file:
    * Typed, and checked as a whole before anything starts; every mistake is one line with its key.
    * Paths are relative to the file.
    * What is decided about models stands in the policy file, which the simulator reads too; here is only where things are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedretrain.artifacts.at_rest import AtRest
from fedretrain.coordinator.roles import Role, Roles
from fedretrain.core.build import build
from fedretrain.core.checks import between, positive, require, time_span
from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import ConfigError
from fedretrain.core.toml_file import check_address, read_toml, under
from fedretrain.server.database import check_url
from fedretrain.server.people import Notary, OrderRules, Person, check_people, fleet_of
from fedretrain.server.sources.config import Kafka, Mqtt, check_sources, placed
from fedretrain.wire.control import MAX_MESSAGE_BYTES

_LEAST_TICK_S = 0.01
_LONGEST_SPAN_S = 366 * DAY_S
_SPANS = {
    "settle_s": "nobody judges what a new champion does for so long",
    "record_s": "a single broken device is told by an old record for so long",
    "inputs_s": "counts of so long are kept as the record of inputs",
}
"""What lasts so long, of each key of `Watching` that a year bounds."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Listen:
    """Where devices reach the coordinator.

    Attributes:
        control: ``host:port`` of the device API (mutual TLS).
        enrol: ``host:port`` of the enrolment (a token, no certificate yet).
        hosts: Names and addresses in the server's certificate.
        public: ``host:port`` that devices are told for the device API; empty: the first of `hosts` with its port.
        heartbeat_s: How often devices shall be heard: at least once a day.
        gateways: Processes that speak with devices: one for each ten thousand or so, and a core for each.
    """

    control: str = "127.0.0.1:7443"
    enrol: str = "127.0.0.1:7444"
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    public: str = ""
    heartbeat_s: float = 60.0
    gateways: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", tuple(self.hosts))
        for key in ("control", "enrol"):
            check_address(f"listen.{key}", getattr(self, key))
        same = self.control == self.enrol and not self.control.endswith(":0")
        require(
            not same,
            f"{self.enrol} is the device API's address",
            key="listen.enrol",
            fix="choose another port",
        )
        if self.public:
            check_address("listen.public", self.public)
        require(bool(self.hosts), "a certificate for no host", key="listen.hosts", fix="name one at least")
        time_span(
            "listen.heartbeat_s", self.heartbeat_s, DAY_S, "an order waits so long until a device hears of it"
        )
        require(
            self.gateways >= 1, "nobody speaks with devices", key="listen.gateways", fix="give 1 at least"
        )


@dataclass(frozen=True)
class Quota:
    """What one device may ask of the gateway; more is refused by name, and may be asked for again later.

    Attributes:
        calls_per_s: Heartbeats and fetched files, for as long as it likes.
        burst_calls: So many at once: a start that installs a package.
        bytes_per_s: Telemetry, for as long as it likes.
        burst_bytes: So many at once: a full outbox, after days without a network.
    """

    calls_per_s: float = 10.0
    burst_calls: int = 400
    bytes_per_s: float = 65_536.0
    burst_bytes: int = 128 * 2**20

    def __post_init__(self) -> None:
        positive("quota.calls_per_s", self.calls_per_s)
        positive("quota.bytes_per_s", self.bytes_per_s)
        require(self.burst_calls >= 1, "no call is let through", key="quota.burst_calls")
        enough = self.burst_bytes >= MAX_MESSAGE_BYTES
        fix = f"give {MAX_MESSAGE_BYTES} at least: a batch may be so large"
        require(enough, "a batch may never be sent", key="quota.burst_bytes", fix=fix)


@dataclass(frozen=True)
class Flower:
    """Training over Flower.

    Attributes:
        fleet: ``host:port`` at which the SuperLink listens for SuperNodes.
        public: ``host:port`` that devices are told; empty: the first of `listen.hosts` with its port.
        development: Plain HTTP without authentication. For one machine and for development only.
    """

    fleet: str = "127.0.0.1:9092"
    public: str = ""
    development: bool = False

    def __post_init__(self) -> None:
        check_address("flower.fleet", self.fleet)
        if self.public:
            check_address("flower.public", self.public)


@dataclass(frozen=True)
class Simulation:
    """Where the simulation gate runs.

    Attributes:
        address: ``host:port`` (or ``auto``) of a Ray cluster on which fedretrain is installed; empty: a child of the coordinator.
    """

    address: str = ""


@dataclass(frozen=True)
class Watching:
    """How the fleet is watched: the clockwork of the policy's windows.

    Attributes:
        slot_s: Devices report one row for each slot: from a second to a day.
        tick_s: How often the coordinator decides: at least once a day.
        settle_s: After a promotion only inputs are judged for so long; then the record of what the new champion does is made.
        record_s: How devices are, by which a single broken one is told, is taken anew so long after a promotion.
        inputs_s: How long the record of inputs is. Each of the three is a year at most: counts are kept in memory for so long.
        memory_gib: The most that counts of devices may take in memory; beyond it nothing is watched, and the log says how to mend it.
    """

    slot_s: float = 3600.0
    tick_s: float = 60.0
    settle_s: float = 3 * 86_400.0
    record_s: float = 14 * 86_400.0
    inputs_s: float = 14 * 86_400.0
    memory_gib: float = 4.0

    def __post_init__(self) -> None:
        between("watching.slot_s", self.slot_s, 1.0, DAY_S)
        between("watching.tick_s", self.tick_s, _LEAST_TICK_S, DAY_S)
        positive("watching.memory_gib", self.memory_gib)
        for key, what in _SPANS.items():
            time_span(f"watching.{key}", getattr(self, key), _LONGEST_SPAN_S, what)


@dataclass(frozen=True)
class Population:
    """A task, a set of devices, a privacy ledger.

    Attributes:
        policy: The policy file.
        training: The training file: model, method, campaign and privacy, as plain data; empty: it never retrains in a campaign.
        features: The features file: schema and pipeline, as JSON; needed to make a first champion.
        pool: Folder of labelled data that the server holds; empty for none.
        watching: The clockwork.
        assignment_valid_s: How long an assignment is good for.
    """

    policy: str
    training: str = ""
    features: str = ""
    pool: str = ""
    watching: Watching = field(default_factory=Watching)
    assignment_valid_s: float = 7 * 86_400.0

    def __post_init__(self) -> None:
        require(bool(self.policy), "no policy file", key="population.policy", fix="name one")
        positive("population.assignment_valid_s", self.assignment_valid_s)


@dataclass(frozen=True)
class ServerConfig:
    """All of it.

    Attributes:
        folder: Everything that is kept: keys, artifacts, and the database where no other is named.
        database: Its URL, SQLite's or PostgreSQL's (a password is better kept in libpq's password file); empty: SQLite in `folder`.
        mlflow: Tracking URI of the registry that people look at; empty: SQLite in `folder`; "off": none.
        listen: Where devices reach it.
        quota: What one device may ask of it.
        flower: Training.
        simulation: The simulation gate.
        populations: By name.
        at_rest: Encryption of packages and campaigns' states.
        roles: Who may order and approve what, by the role's name; none: whoever gives a name may do everything.
        people: Keys of those who order, by their names; who has none is believed by name.
        orders: What an order needs.
        mqtt: Brokers of MQTT that telemetry comes from, too.
        kafka: Likewise Kafka's.
    """

    folder: str
    populations: dict[str, Population]
    at_rest: AtRest = field(default_factory=AtRest)
    roles: dict[str, Role] = field(default_factory=dict)
    people: dict[str, Person] = field(default_factory=dict)
    orders: OrderRules = field(default_factory=OrderRules)
    database: str = ""
    mlflow: str = ""
    listen: Listen = field(default_factory=Listen)
    quota: Quota = field(default_factory=Quota)
    flower: Flower = field(default_factory=Flower)
    simulation: Simulation = field(default_factory=Simulation)
    mqtt: tuple[Mqtt, ...] = ()
    kafka: tuple[Kafka, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "mqtt", tuple(self.mqtt))
        object.__setattr__(self, "kafka", tuple(self.kafka))
        check_sources(self.sources, self.populations)
        require(bool(self.folder), "no folder", key="folder", fix="name one")
        require(bool(self.populations), "no population", key="populations", fix="add [populations.NAME]")
        check_url(self.database_url)
        for name in self.populations:
            ok = _NAME.fullmatch(name) is not None
            require(ok, f"{name!r} is no name", key="populations", fix="letters, digits, '.', '_' and '-'")
        for name, role in self.roles.items():
            unknown = sorted(set(role.populations) - set(self.populations))
            known = ", ".join(sorted(self.populations))
            require(
                not unknown,
                f"there is no population {', '.join(unknown)}",
                key=f"roles.{name}.populations",
                fix=f"name some of {known}",
            )

        check_people(self.people, self.orders, {one for role in self.roles.values() for one in role.people})

    def roles_of(self, population: str) -> Roles:
        """Who may order and approve what of a population's models."""
        return Roles(self.roles).of(population)

    def notary_of(self, population: str) -> Notary:
        """Who says of a population's orders whether they are the word of whom they name."""
        return Notary(population, fleet_of(Path(self.folder)), self.people, self.orders)

    @property
    def sources(self) -> tuple[Mqtt | Kafka, ...]:
        """Every broker."""
        return (*self.mqtt, *self.kafka)

    @property
    def database_url(self) -> str:
        """Of the database."""
        return self.database or f"sqlite:///{self.folder}/fedretrain.db"


def read_server(path: Path) -> ServerConfig:
    """The configuration of a file, with absolute paths.

    Raises:
        ConfigError: If it cannot be read, or says what cannot be.
    """
    config = build(ServerConfig, read_toml(path), where=str(path))
    base = path.resolve().parent
    populations = {
        name: replace(
            one,
            policy=under(base, one.policy),
            training=under(base, one.training),
            features=under(base, one.features),
            pool=under(base, one.pool),
        )
        for name, one in config.populations.items()
    }
    for name, one in populations.items():
        for key in ("policy", "training", "features", "pool"):
            named = getattr(one, key)
            if named and not Path(named).exists():
                raise ConfigError(
                    f"there is no {named}", where=f"{path}: populations.{name}.{key}", fix="correct the path"
                )
    at_rest = config.at_rest.under(base)
    return replace(
        config,
        at_rest=at_rest,
        folder=under(base, config.folder),
        populations=populations,
        mqtt=tuple(placed(one, base) for one in config.mqtt),
        kafka=tuple(placed(one, base) for one in config.kafka),
    )
