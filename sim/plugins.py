"""Objects of the user's by import path.

Rules of this file:
    * A path is ``package.module:name``; the name is a class or function called with keyword options.
    * Whatever is wrong with it is one line that says what, where and how to mend it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def load(path: str, options: Mapping[str, Any], *, needs: Sequence[str], key: str) -> Any:
    """Import and call a factory.

    Args:
        path: ``package.module:name``.
        options: Keyword arguments for it.
        needs: Attributes that the result must have.
        key: The configuration key that held the path, for messages.

    Raises:
        ConfigError: If the path is malformed or missing, the call fails, or an attribute is absent.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{path!r} is not an import path", where=key, fix="write package.module:name")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{path!r} cannot be imported: {error}", where=key) from error
    try:
        made = factory(**options)
    except TypeError as error:
        raise ConfigError(f"{path!r} refused its options: {error}", where=key) from error
    missing = [need for need in needs if not hasattr(made, need)]
    if missing:
        raise ConfigError(f"{path!r} makes an object without {', '.join(missing)}", where=key)
    return made
