"""From command-line words to a `Config`: Hydra composes, `sim.build` checks.

Rules of this file:
    * Hydra's part is composition alone: groups under `conf/`, overrides, sweeps. Every key that the schema knows is
      present, so any of them can be overridden without a ``+``.
    * What Hydra says in four lines, a person reads in one.
"""

from __future__ import annotations

import difflib
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.core.build import build, plain
from fedretrain.core.errors import ConfigError
from sim.schema import Config

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def config_folder() -> Path:
    """Where the configuration groups are: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "conf"
    return packaged if packaged.is_dir() else here.parent / "conf"


def compose(overrides: Sequence[str], *, folder: str = "") -> dict[str, Any]:
    """The composed and resolved configuration as plain values.

    Args:
        overrides: Hydra overrides, for example ``["experiment=wisdm", "seeds=5"]``.
        folder: A folder of the user's own configuration groups, searched first; empty for none.

    Raises:
        ConfigError: If a group, an option or a key does not exist, or a word is no override.
    """
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name="schema", node=plain(Config()))
    words = [_free(word) for word in overrides]
    if folder:
        if not Path(folder).is_dir():
            raise ConfigError("there is no such folder", where=f"--config-dir {folder}")
        words.append(f"hydra.searchpath=[file://{Path(folder).resolve()}]")
    try:
        with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
            composed = hydra.compose("config", words)
        values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise _one_line(error, overrides) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def configure(overrides: Sequence[str], *, folder: str = "") -> Config:
    """A checked configuration. See `compose`."""
    return build(Config, compose(overrides, folder=folder))


def sweep(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Every combination of a sweep: ``a=1,2 b=x`` gives ``[a=1 b=x]`` and ``[a=2 b=x]``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise _one_line(error, overrides) from error
    choices = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line or ""]
        for o in parsed
    ]
    return (list(combination) for combination in itertools.product(*choices))


def _one_line(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Hydra's message as one line that names the word at fault and the nearest key."""
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text) or re.search(
        r"Key '([^']+)' is not in struct", text
    ):
        key = found[1]
        close = difflib.get_close_matches(key, list(_dotted(plain(Config()))), n=1)
        fix = f"did you mean {close[0]!r}?" if close else "python -m sim --cfg shows every key"
        return ConfigError(f"there is no key {key!r}", where=_culprit(key, overrides), fix=fix)
    if found := re.search(r"Could not find '([^']+)'", text):
        group, _, asked = found[1].rpartition("/")
        listed = text.partition("Available options")[2].partition("Config search path")[0].split("\n")[1:]
        options = [option.strip() for option in listed if option.strip()]
        close = difflib.get_close_matches(asked, options, n=1)
        fix = (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(options)}"
        return ConfigError(
            f"there is no {group or 'configuration'} {asked!r}", where=_culprit(asked, overrides), fix=fix
        )
    if word := _unreadable(overrides):
        return ConfigError(
            "this word cannot be read",
            where=word,
            fix="write KEY=VALUE, and 'KEY=\"VALUE\"' around other signs",
        )
    lines = [line.strip() for line in text.splitlines() if line.strip() and "HYDRA_FULL_ERROR" not in line]
    return ConfigError("; ".join(lines[:2]), where=" ".join(overrides), fix="python -m sim --help")


def _unreadable(overrides: Sequence[str]) -> str:
    """The first word that Hydra's grammar does not know; empty if it knows them all."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for word in overrides:
        try:
            parser.parse_override(word)
        except HydraException:
            return word
    return ""


_SHORT = {"policy": "lifetime.policy", "policies": "lifetime.policies"}
"""What is typed so often that its group is left out."""


def _free(word: str) -> str:
    """A word in full: short keys, and options of a factory, which are free-form and need no ``+``."""
    key, equals, value = word.partition("=")
    if key in _SHORT and equals:
        # A path is one word to Hydra only in quotes.
        return f"{_SHORT[key]}={value}" if value[:1] in "[\"'" else f"{_SHORT[key]}='{value}'"
    return f"++{word}" if ".options." in key and key[0] not in "+~" else word


def _culprit(key: str, overrides: Sequence[str]) -> str:
    """The override that names `key`, as a key or as an option, or nothing."""
    exact = (word for word in overrides if key in {part.lstrip("+~") for part in word.split("=", 1)})
    return next(exact, None) or next((word for word in overrides if key in word), "")


def _dotted(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
