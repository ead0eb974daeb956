"""What world is made, and how it is played.

Rules of this file:
    * What `prepare` made is kept in ``feed.json``; `run` may change how it is played, never what was made.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fedretrain.core.build import build, plain
from fedretrain.core.checks import finite, fraction, not_negative, positive, require
from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = "python -m sim feed prepare DIR [KEY=VALUE ...] | feed run DIR [KEY=VALUE ...]"
PLAYED = (
    "interval_s",
    "rows_per_batch",
    "label_delay_s",
    "label_fraction",
    "drift_at_s",
    "keep_s",
    "timeout_s",
)
"""Keys that `run` takes."""


@dataclass(frozen=True)
class FeedConfig:
    """The keys of `python -m sim feed`.

    Attributes:
        num_devices: Logical devices in the fleet.
        num_agents: Agents that host them, one after the other.
        num_lab_devices: Devices of the laboratory, none of which is in the fleet.
        num_features: Sensor channels.
        num_classes: Classes.
        lab_rows: Labelled rows of each laboratory device.
        stream_rows: Rows of each device; after the last one its stream begins anew.
        seed: Of everything.
        num_sites: Devices stand at so many sites, in turn.
        num_types: Devices are of so many types, in turn.
        host: Where the agents' local APIs listen.
        first_port: Of the first agent; the others follow.
        interval_s: Every device's sensors report so often.
        rows_per_batch: So many rows at a time.
        label_delay_s: A person says what was right so much later.
        label_fraction: Of this share of the rows.
        drift_at_s: The sensors drift so long after the start of `run`; 0: only when the file ``drift.now`` appears.
        drift_fraction: Share of the devices whose sensors drift.
        drift_gain: Relative change of the drifting channels: -0.3 is a sensor that lost 30 % of its sensitivity.
        drift_offset: Their shift, in standard deviations of the laboratory's rows; 0: as much as `drift_loss` asks for.
        drift_loss: So much accuracy a linear model of the laboratory's rows loses by the drift.
        drift_channels: So many channels drift, the first ones; 0: half of them.
        keep_s: What an agent could not be told for so long is dropped and counted.
        timeout_s: How long an agent is waited for.
    """

    num_devices: int = 24
    num_agents: int = 4
    num_lab_devices: int = 12
    num_features: int = 8
    num_classes: int = 4
    lab_rows: int = 200
    stream_rows: int = 20_000
    seed: int = 0
    num_sites: int = 3
    num_types: int = 2
    host: str = "127.0.0.1"
    first_port: int = 7480
    interval_s: float = 0.5
    rows_per_batch: int = 4
    label_delay_s: float = 5.0
    label_fraction: float = 0.5
    drift_at_s: float = 0.0
    drift_fraction: float = 0.5
    drift_gain: float = -0.3
    drift_offset: float = 0.0
    drift_loss: float = 0.33
    drift_channels: int = 0
    keep_s: float = 30.0
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        for name in ("num_agents", "num_lab_devices", "lab_rows", "num_sites", "num_types", "rows_per_batch"):
            require(
                getattr(self, name) >= 1, f"{getattr(self, name)} are none", key=name, fix="give 1 or more"
            )
        require(
            self.num_devices >= self.num_agents,
            "an agent would host nothing",
            key="num_devices",
            fix="give more",
        )
        rows_fit = self.stream_rows >= self.rows_per_batch
        require(rows_fit, "a stream has less than one batch", key="stream_rows", fix="give more")
        for name in ("interval_s", "keep_s", "timeout_s"):
            positive(name, getattr(self, name))
        for name in ("label_delay_s", "drift_at_s", "drift_channels"):
            not_negative(name, getattr(self, name))
        for name in ("label_fraction", "drift_fraction", "drift_loss"):
            fraction(name, getattr(self, name))
        for name in ("drift_gain", "drift_offset"):
            finite(name, getattr(self, name))
        require(self.drift_channels <= self.num_features, "there are fewer channels", key="drift_channels")
        last = self.first_port + self.num_agents - 1
        require(self.first_port > 0 and last < 2**16, f"ports to {last} do not exist", key="first_port")


def made(words: Sequence[str]) -> FeedConfig:
    """The configuration of command-line words.

    Raises:
        ConfigError: If a word is no KEY=VALUE, or a key or value is wrong.
    """
    return build(FeedConfig, _values(words), where="feed")


def played(config: FeedConfig, words: Sequence[str]) -> FeedConfig:
    """A prepared world's configuration, played as the words say.

    Raises:
        ConfigError: Likewise; or if a key would change what was prepared.
    """
    values = _values(words)
    fixed = sorted({one.name for one in fields(FeedConfig)} & set(values) - set(PLAYED))
    if fixed:
        raise ConfigError(
            f"{fixed[0]} was fixed when the world was prepared",
            where="feed run",
            fix=f"run takes {', '.join(PLAYED)}",
        )
    return build(FeedConfig, {**plain(config), **values}, where="feed")


def _values(words: Sequence[str]) -> dict[str, Any]:
    import yaml

    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} is no KEY=VALUE", fix=USAGE)
        values[key] = value if key == "host" else yaml.safe_load(value)
    return values
