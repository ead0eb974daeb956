"""Policy files as the simulator reads them: by path, or by the name of a shipped one."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.coordinator.policy import Policy, TelemetryMode, read_policy
from fedretrain.core.errors import ConfigError
from fedretrain.retraining.config import Mode
from sim.configure import config_folder

if TYPE_CHECKING:
    from sim.lifetime.config import LifetimeConfig

MODES = tuple(str(mode) for mode in Mode)


@dataclass(frozen=True)
class NamedPolicy:
    """A policy and what it is called in reports."""

    name: str
    policy: Policy


def load_policy(name: str, modes: tuple[str, ...] = ()) -> Policy:
    """The policy of a file, or a shipped one.

    Args:
        name: A path, or a name under ``conf/policy``.
        modes: What else could have been meant, for the message.

    Raises:
        ConfigError: If there is no such file, it is no policy, or nobody could watch under it.
    """
    import yaml

    shipped = config_folder() / "policy"
    path = Path(name) if Path(name).suffix else shipped / f"{name}.yaml"
    if not path.is_file():
        known = [*modes, *sorted(file.stem for file in shipped.glob("*.yaml"))]
        close = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"there is no policy {name!r}",
            where="policy",
            fix=f"did you mean {close[0]!r}?" if close else f"give a file, or one of {', '.join(known)}",
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        line = str(error).splitlines()[0]
        raise ConfigError(
            f"the policy cannot be read: {line}", where=str(path), fix="write it as YAML"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError("it holds no keys", where=str(path), fix="write KEY: VALUE lines")
    where = str(path) if path.parent != shipped else f"policy {path.stem}"
    policy = read_policy(values, where=where)
    if policy.telemetry is TelemetryMode.OFF:
        raise ConfigError(
            "a life is watched by its devices' telemetry, and it is off",
            where=f"{where}: telemetry",
            fix="set telemetry: operational",
        )
    return policy


def policies_of(config: LifetimeConfig) -> tuple[NamedPolicy, ...]:
    """The policies that live side by side: modes of the one policy file, or files of their own.

    Raises:
        ConfigError: If one is neither, or is named twice.
    """
    base = load_policy(config.policy)
    found = []
    for name in config.policies:
        policy = base.with_mode(Mode(name)) if name in MODES else load_policy(name, MODES)
        found.append(NamedPolicy(name if name in MODES else policy.name, policy))
    names = [one.name for one in found]
    if len(set(names)) != len(names):
        raise ConfigError("a policy is named twice", where="policies", fix="give each its own name")
    return tuple(found)
