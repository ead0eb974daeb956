"""What a run will do: its arms, each with a resolved configuration. Written first, so that a run can be resumed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from fedretrain.core.build import build, plain
from fedretrain.core.errors import ConfigError, DataError
from sim.configure import compose
from sim.schema import Config, PrivacyKind

if TYPE_CHECKING:
    from collections.abc import Sequence

PLAN = "checkpoint/plan.yaml"
# What a run has once, whatever its arms are.
_WHOLE_RUN = ("name", "seed", "seeds", "output_dir", "tracking_uri", "resume")
_WHOLE_RUNNER = ("kind", "num_workers", "address", "checkpoint_s")


@dataclass(frozen=True)
class PlannedArm:
    """One arm of a run.

    Attributes:
        name: Its key in every record.
        title: Its name for people.
        config: Resolved.
    """

    name: str
    title: str
    config: Config


@dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        config: The experiment's own configuration.
        arms: In the order in which they are shown.
    """

    config: Config
    arms: tuple[PlannedArm, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each repetition."""
        return tuple(range(self.config.seed, self.config.seed + self.config.seeds))

    def to_yaml(self) -> str:
        """Everything resolved, as text: `config.yaml` of a run."""
        arms = {arm.name: {"title": arm.title, "config": plain(arm.config)} for arm in self.arms}
        return yaml.safe_dump({"experiment": plain(self.config), "resolved_arms": arms}, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str, where: Path) -> Plan:
        """The plan of `to_yaml`.

        Raises:
            DataError: If the text is no such plan.
        """
        try:
            values = yaml.safe_load(text)
            arms = tuple(
                PlannedArm(name, one["title"], build(Config, one["config"]))
                for name, one in values["resolved_arms"].items()
            )
            return cls(build(Config, values["experiment"]), arms)
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise DataError(
                f"not a configuration of this version: {error}", where=str(where), fix="start the run again"
            ) from error


def plan_run(overrides: Sequence[str], *, folder: str = "") -> Plan:
    """The plan that command-line words ask for.

    Args:
        overrides: Hydra overrides.
        folder: A folder of the user's own configuration groups.

    Raises:
        ConfigError: If a word, a key or a value is wrong.
    """
    config = build(Config, compose(overrides, folder=folder))
    arms = []
    for name, wanted in config.arms.items():
        if not name.replace("_", "").isalnum():
            raise ConfigError(f"an arm is called {name!r}", where="arms", fix="use letters, digits and _")
        resolved = build(Config, compose([*overrides, *wanted.overrides], folder=folder))
        _refuse_run_wide(name, config, resolved)
        arms.append(PlannedArm(name, wanted.title or name, replace(resolved, arms={})))
    if not arms:
        kind = str(config.personalization.kind)
        arms = [PlannedArm(kind, kind, config)]
    _refuse_ignored_privacy(arms)
    return Plan(config, tuple(arms))


def _refuse_ignored_privacy(arms: Sequence[PlannedArm]) -> None:
    """Settings of a privacy that no arm has would be ignored, and the run taken for a private one."""
    found = [arm.config.privacy for arm in arms]
    if any(privacy.kind is not PrivacyKind.NONE for privacy in found):
        return
    for key in ("target_epsilon", "noise_multiplier", "adaptive_clip", "amplified"):
        if any(getattr(privacy, key) for privacy in found):
            raise ConfigError(
                f"privacy.{key} is given, and nothing in this run is differentially private",
                where=f"privacy.{key}",
                fix="add privacy=central, or leave it out",
            )


def _refuse_run_wide(name: str, config: Config, resolved: Config) -> None:
    """An arm changes what is computed; where and how often is the run's."""
    changed = [key for key in _WHOLE_RUN if getattr(config, key) != getattr(resolved, key)]
    changed += [
        f"runner.{key}"
        for key in _WHOLE_RUNNER
        if getattr(config.runner, key) != getattr(resolved.runner, key)
    ]
    if changed:
        raise ConfigError(
            f"an arm cannot change {changed[0]}",
            where=f"arms.{name}.overrides",
            fix="set it for the whole run",
        )


def resumed_plan(path: str, overrides: Sequence[str]) -> tuple[Plan, Path]:
    """The plan of an interrupted run, and its folder.

    Raises:
        ConfigError: If other overrides are given: a resumed run is the same run.
        DataError: If there is nothing to resume.
    """
    others = [word for word in overrides if not word.startswith("resume=")]
    if others:
        raise ConfigError(
            "a resumed run keeps its configuration", where=others[0], fix="give resume=PATH alone"
        )
    folder = Path(path)
    if (folder / "summary.json").exists():
        raise DataError("this run is finished", where=path, fix="python -m sim reproduce runs it again")
    try:
        text = (folder / PLAN).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"there is no checkpoint: {error.strerror}",
            where=path,
            fix="give the folder of an interrupted run",
        ) from error
    return Plan.from_yaml(text, folder / PLAN), folder
