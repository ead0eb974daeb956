"""Data sets by name, or anybody's own by import path ``package.module:function``."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from fedretrain.core.errors import ConfigError
from sim.datasets.base import SensorDataset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOADERS = {
    "watch": "sim.datasets.watch:load",
    "watch_swap": "sim.datasets.watch_swap:load",
    "wisdm": "sim.datasets.wisdm:load",
    "gas_drift": "sim.datasets.gas_drift:load",
    "beijing_air": "sim.datasets.beijing_air:load",
    "table": "sim.datasets.table:load",
    "pool": "sim.datasets.pool:load",
    "scale": "sim.datasets.synthetic:load",
}
"""Import paths, so that a data set's own libraries are imported when it is asked for."""


def loader(name: str) -> Callable[..., SensorDataset]:
    """The function that loads a data set.

    Args:
        name: A name out of `LOADERS`, or ``package.module:function`` of the user's own, which takes `data_dir` and
            any keyword options and returns a `SensorDataset`.

    Raises:
        ConfigError: If there is no such data set, or its module cannot be imported.
    """
    path = LOADERS.get(name, name)
    if path.count(":") != 1:
        near = difflib.get_close_matches(name, LOADERS, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(LOADERS)}"
        raise ConfigError(
            f"there is no data set {name!r}", fix=f"{hint} Or write package.module:function of your own"
        )
    module, function = path.split(":")
    try:
        found: Callable[..., SensorDataset] = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise ConfigError(
            f"the data set {name!r} cannot be imported: {error}",
            fix="run from the folder that holds it, or install it",
        ) from error
    except AttributeError:
        raise ConfigError(
            f"the module {module} has no function {function!r}", fix="mend the import path"
        ) from None
    return found


def load(name: str, data_dir: Path | str | None = None, **options: Any) -> SensorDataset:
    """Load a data set.

    Args:
        name: See `loader`.
        data_dir: The folder of the data; else FEDRETRAIN_DATA.
        options: The data set's own.

    Raises:
        ConfigError: If an option is not known, or the function gives back something else.
        DataError: If the data is missing, damaged or not what its schema says.
    """
    function = loader(name)
    try:
        dataset = function(data_dir, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ConfigError(
            f"the data set {name} has no option {str(error).split(chr(39))[1]!r}", fix="see its load function"
        ) from error
    if not isinstance(dataset, SensorDataset):
        raise ConfigError(
            f"{name} gave back a {type(dataset).__name__}", fix="return a sim.datasets.base.SensorDataset"
        )
    return dataset
