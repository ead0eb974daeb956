"""What the simulation gate is asked, and its margins with their defaults."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fedretrain.core.build import build
from fedretrain.core.checks import fraction, not_negative, require
from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = "python -m sim gate candidate=RUN fleet=FITTED.yaml|log=LOG [champion=RUN] [KEY=VALUE ...]"
LEAST_SEEDS = 5


@dataclass(frozen=True)
class GateConfig:
    """The gate's keys on the command line.

    Attributes:
        candidate: A run folder: the campaign that made the candidate, replayed from its own configuration. Or a ``.safetensors`` file of shared
            parameters, which is scored on the champion's fleet. Or a ``.json`` file in which a coordinator describes a campaign
            (`fedretrain.server.replay_order`): it is replayed from its own beginning beside the champion that it names.
        fleet: A fitted fleet (`python -m sim fit`).
        log: A fleet's event log, to be fitted first; in the place of `fleet`.
        champion: The run folder that the candidate is compared with, replayed on the same fleet with the same seeds. Empty: the candidate is
            compared with what its own run says of it.
        arm: The candidate's arm; empty: its run's first.
        champion_arm: Likewise of the champion.
        seeds: Repetitions of every replay, at least 5.
        most_seeds: While the verdict is INCONCLUSIVE, `seeds` more are replayed, up to so many. Each look has its own 95 % interval, so three looks let
            a candidate exactly at its margin through with a chance of at most 7.5 %.
        accuracy_margin: The mean score over devices may be worse by so much: points of accuracy (0.02 is two), or a fraction of an error.
        worst_margin: Likewise the mean over the worst tenth of the devices.
        epsilon_margin: Epsilon may exceed what the candidate's configuration promises (or, without a promise, what its run spent) by so much.
        stress: The second condition has so many times the observed drop-outs and label delay.
        out: Where the report is written for programs.
        address: A Ray cluster on which to judge a coordinator's campaign (``host:port``, or ``auto``); empty: here.
        memory_bytes: The most private memory of the task on the cluster; 0: no limit.
    """

    candidate: str
    fleet: str = ""
    log: str = ""
    champion: str = ""
    arm: str = ""
    champion_arm: str = ""
    seeds: int = LEAST_SEEDS
    most_seeds: int = 3 * LEAST_SEEDS
    accuracy_margin: float = 0.02
    worst_margin: float = 0.05
    epsilon_margin: float = 0.0
    stress: float = 2.0
    out: str = "gate.json"
    address: str = ""
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        require(bool(self.candidate), "is not named", key="candidate", fix=USAGE)
        require(bool(self.fleet) != bool(self.log), "name a fitted fleet, or a log", key="fleet", fix=USAGE)
        require(
            self.seeds >= LEAST_SEEDS,
            f"{self.seeds} seeds are too few",
            key="seeds",
            fix=f"give {LEAST_SEEDS} or more",
        )
        require(self.most_seeds >= self.seeds, "is below seeds", key="most_seeds", fix="give seeds or more")
        fraction("accuracy_margin", self.accuracy_margin)
        fraction("worst_margin", self.worst_margin)
        not_negative("epsilon_margin", self.epsilon_margin)
        not_negative("memory_bytes", self.memory_bytes)
        require(self.stress >= 1.0, "is at least 1", key="stress")
        weights = self.candidate.endswith(".safetensors")
        require(
            not weights or bool(self.champion),
            "weights alone do not say what they are compared with",
            key="champion",
            fix="name the champion's run folder",
        )


def read_words(words: Sequence[str]) -> GateConfig:
    """The configuration of command-line words.

    Raises:
        ConfigError: If a word is no KEY=VALUE, or a key or value is wrong.
    """
    import yaml

    text = {one.name for one in fields(GateConfig) if one.type == "str"}
    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} is no KEY=VALUE", fix=USAGE)
        values[key] = value if key in text else yaml.safe_load(value)
    if "candidate" not in values:
        raise ConfigError("no candidate is named", where="candidate=", fix=USAGE)
    if "fleet" not in values and "log" not in values:
        raise ConfigError("no fleet is named", where="fleet=", fix=USAGE)
    return build(GateConfig, values, where="gate")
