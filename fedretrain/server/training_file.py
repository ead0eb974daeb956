"""The training file: which model a population trains, how, and at what price; plain data that a campaign's definition holds.

Rules of this file:
    * One file for every retrain of a population; what a retrain does differently (from scratch, on the pool) is the
      decision's word.
    * What a claim of privacy rests on is checked when the file is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from fedretrain.core.build import build
from fedretrain.core.checks import not_negative, positive
from fedretrain.core.errors import ConfigError
from fedretrain.server.campaign_rules import CampaignRules
from fedretrain.server.example_rules import check_plan
from fedretrain.training.plan import TrainingPlan  # noqa: TC001 - `core.build` reads the annotations

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class PoolTraining:
    """A central retrain on the server's pool.

    Attributes:
        num_rounds: Passes of the plan's local training over the rows.
        max_s: An attempt that takes longer is ended.
        memory_bytes: The most private memory of its process.
        attempts: After so many that failed by themselves it is given up.
    """

    num_rounds: int = 20
    max_s: float = 7200.0
    memory_bytes: int = 8 * 2**30
    attempts: int = 3

    def __post_init__(self) -> None:
        for name in ("num_rounds", "max_s", "memory_bytes", "attempts"):
            positive(f"training.pool.{name}", getattr(self, name))


@dataclass(frozen=True)
class TrainingFile:
    """What a retrain is.

    Attributes:
        plan: Model, method and local training.
        rules: Cohorts, aggregation, privacy.
        num_rounds: Of a campaign.
        interval_s: From a round's beginning to the next one's, at least.
        patience_s: How long a round waits for connected devices.
        max_s: After that a campaign is given up, and its retrain has failed; what it charged stays charged.
        pool: How a central retrain is run.
    """

    plan: TrainingPlan
    rules: CampaignRules = field(default_factory=CampaignRules)
    num_rounds: int = 10
    interval_s: float = 0.0
    patience_s: float = 3600.0
    max_s: float = 2 * 86_400.0
    pool: PoolTraining = field(default_factory=PoolTraining)

    def __post_init__(self) -> None:
        positive("training.num_rounds", self.num_rounds)
        not_negative("training.interval_s", self.interval_s)
        positive("training.patience_s", self.patience_s)
        positive("training.max_s", self.max_s)
        check_plan(self.plan, self.rules)


def read_training(path: Path) -> TrainingFile:
    """The content of a file.

    Raises:
        ConfigError: If it cannot be read, or says what cannot be.
    """
    return build(TrainingFile, read_yaml(path), where=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The values of a YAML file.

    Raises:
        ConfigError: If it cannot be read, or holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}", where=str(path), fix="name the file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"it cannot be read: {text}", where=str(path), fix="write YAML") from error
    if not isinstance(values, dict):
        raise ConfigError("it holds no keys", where=str(path), fix="write KEY: VALUE lines")
    return values
