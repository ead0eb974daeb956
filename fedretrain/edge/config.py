"""`edge.toml`: which logical devices an agent hosts, where it keeps things, and who may talk to it.

Rules of this file:
    * Typed, and checked as a whole before anything starts; every mistake is one line with its key.
    * Paths are relative to the file.
    * What a device serves is not here: that is in signed assignments.
    * The local API listens on the loopback interface alone: whoever is on the machine is trusted, nobody else.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fedretrain.artifacts.at_rest import AtRest
from fedretrain.core.build import build
from fedretrain.core.checks import not_negative, positive, require, time_span
from fedretrain.core.clock import DAY_S
from fedretrain.core.ids import is_name
from fedretrain.core.toml_file import check_address, read_toml, under
from fedretrain.edge.health_limits import HealthLimits
from fedretrain.privacy.example import ExampleBudget
from fedretrain.training.keep import BlendConfig

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class DeviceConfig:
    """A logical device.

    Attributes:
        name: Its id in the fleet, as its enrolment token says.
        token: The one-time token; needed until it is enrolled.
        token_file: A file with the token, instead.
        device_type: For strata and views.
        site: Likewise.
        person: Whose device it is, where the unit of privacy is the person.
        trains: Whether it takes part in training campaigns: `fedretrain[train]` is installed.
        sensor: The sensor's name or serial number: examples keep it.
        calibration_epoch: Counts the sensor's calibrations: examples keep it.
        firmware: Of the sensor's board: examples keep it.
    """

    name: str
    token: str = ""
    token_file: str = ""
    device_type: str = ""
    site: str = ""
    person: str = ""
    trains: bool = False
    sensor: str = ""
    calibration_epoch: int = 0
    firmware: str = ""

    def __post_init__(self) -> None:
        require(is_name(self.name), f"{self.name!r} is no name", key="name", fix="letters, digits, . _ -")
        both = bool(self.token) and bool(self.token_file)
        require(not both, "two tokens", key="token_file", fix="give token or token_file")
        not_negative("calibration_epoch", self.calibration_epoch)


@dataclass(frozen=True)
class OutboxConfig:
    """What may wait to be sent.

    Attributes:
        max_bytes: The most bytes; the lowest priority is dropped first.
        max_age_s: Older records are dropped.
        flush_s: How often what happened is written to the disk: a power cut loses at most so much.
    """

    max_bytes: int = 64 * MIB
    max_age_s: float = 30 * DAY_S
    flush_s: float = 10.0

    def __post_init__(self) -> None:
        require(self.max_bytes >= 2**16, f"{self.max_bytes} bytes are no outbox", key="outbox.max_bytes")
        positive("outbox.max_age_s", self.max_age_s)
        positive("outbox.flush_s", self.flush_s)


@dataclass(frozen=True)
class ApiConfig:
    """Who may ask for predictions.

    Attributes:
        http: ``host:port`` of the HTTP endpoint, on the loopback interface; port 0 takes a free one; empty: none.
        socket: Path of the Unix socket; empty: none.
        max_body_bytes: The longest request.
        requests_per_s: Requests beyond that are refused until there is room again.
        burst: So many may come at once.
    """

    http: str = "127.0.0.1:7480"
    socket: str = ""
    max_body_bytes: int = 4 * MIB
    requests_per_s: float = 200.0
    burst: int = 400

    def __post_init__(self) -> None:
        if self.http:
            check_address("api.http", self.http)
            ok = is_loopback(self.http.rsplit(":", 1)[0])
            fix = "write 127.0.0.1:PORT; put a proxy of your own before it for others"
            require(ok, f"{self.http!r} is not on the loopback interface", key="api.http", fix=fix)
        require(self.max_body_bytes >= 1024, "no request fits", key="api.max_body_bytes")
        positive("api.requests_per_s", self.requests_per_s)
        require(self.burst >= 1, "no request is let through", key="api.burst")


@dataclass(frozen=True)
class TrainingConfig:
    """What a campaign may take.

    Attributes:
        insecure: Development: plain HTTP to any SuperLink.
        supernode_bytes: Private memory of the SuperNode.
        app_bytes: Private memory of the process that trains.
        min_confidence: Labels of heuristics that are less sure are not trained on, 0 to 1.
        example_epsilon: The most that example-level DP may cost the examples of a logical device; 0: charged without a limit.
        example_delta: Of it; below one over the number of examples.
    """

    insecure: bool = False
    supernode_bytes: int = 512 * MIB
    app_bytes: int = 1024 * MIB
    min_confidence: float = 0.0
    example_epsilon: float = 0.0
    example_delta: float = 1e-6

    def __post_init__(self) -> None:
        self.example_budget  # noqa: B018 - it checks both

    @property
    def example_budget(self) -> ExampleBudget:
        """What a device lets its examples cost."""
        return ExampleBudget(self.example_epsilon, self.example_delta)


@dataclass(frozen=True)
class RefitConfig:
    """How personal layers are re-fitted beside a new shared body.

    Attributes:
        epochs: Passes over the device's labelled examples.
        batch_size: Examples of a step.
        lr: Learning rate.
        most_behind: A personal state of so many versions ago is still a start; an older one is not.
        keep: When the result is kept.
    """

    epochs: int = 5
    batch_size: int = 10
    lr: float = 0.05
    most_behind: int = 3
    keep: BlendConfig = field(default_factory=BlendConfig)

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "most_behind"):
            require(getattr(self, key) >= 1, f"{getattr(self, key)} are none", key=f"refit.{key}")
        positive("refit.lr", self.lr)


@dataclass(frozen=True)
class EdgeConfig:
    """All of it.

    Attributes:
        folder: Everything that is kept: keys, models, examples.
        enrol: ``host:port`` of the fleet's enrolment.
        authority: File with the fleet's authority (PEM), carried here beforehand.
        devices: The logical devices.
        outbox: What may wait to be sent.
        api: The local API.
        slots_kept: Good model versions beside the one that is served.
        health: When a model is not well.
        training: Campaigns.
        refit: Personal layers.
        heartbeat_s: How often the coordinator is asked, at least once a day; it may say otherwise.
        at_rest: Encryption of the models that are kept here.
        metered: Whether bytes cost money here: a hint for those who choose whom to ask for training.
    """

    folder: str
    enrol: str
    authority: str
    devices: tuple[DeviceConfig, ...]
    outbox: OutboxConfig = field(default_factory=OutboxConfig)
    api: ApiConfig = field(default_factory=ApiConfig)
    slots_kept: int = 2
    health: HealthLimits = field(default_factory=HealthLimits)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    refit: RefitConfig = field(default_factory=RefitConfig)
    heartbeat_s: float = 60.0
    at_rest: AtRest = field(default_factory=AtRest)
    metered: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", tuple(self.devices))
        require(bool(self.folder), "no folder", key="folder", fix="name one")
        check_address("enrol", self.enrol)
        require(bool(self.authority), "no authority", key="authority", fix="name the fleet's ca.pem")
        names = [device.name for device in self.devices]
        require(bool(names), "no device", key="devices", fix="add [[devices]]")
        require(len(set(names)) == len(names), "two devices of one name", key="devices")
        require(self.slots_kept >= 1, "nothing to go back to", key="slots_kept", fix="give 1 or more")
        time_span(
            "heartbeat_s", self.heartbeat_s, DAY_S, "an order waits so long until this device hears of it"
        )


def read_edge(path: Path) -> EdgeConfig:
    """The configuration of a file, with absolute paths.

    Raises:
        ConfigError: If it cannot be read, or says what cannot be.
    """
    config = build(EdgeConfig, read_toml(path), where=str(path))
    base = path.resolve().parent
    devices = tuple(replace(one, token_file=under(base, one.token_file)) for one in config.devices)
    api = replace(config.api, socket=under(base, config.api.socket))
    folder, authority = under(base, config.folder), under(base, config.authority)
    at_rest = config.at_rest.under(base)
    return replace(config, folder=folder, authority=authority, devices=devices, api=api, at_rest=at_rest)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
