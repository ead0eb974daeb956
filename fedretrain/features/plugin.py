"""A step that an installed package provides: pinned by import path, distribution name and version."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.features.steps import Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.features.frame import Frame

GROUP = "fedretrain.features"
"""The entry points under which a distribution offers plug-ins: name = "package.module:function"."""


@dataclass(frozen=True)
class PlugIn(Step):
    """Call ``module:function(x, **options)`` on the rows: ``[N, ...]`` to ``[N, ...]`` float32, row by row.

    Attributes:
        path: ``"package.module:function"``.
        distribution: The installed distribution that holds it; empty for a module that is none's (a user's own file).
        version: Frozen by `fit`; another installed version is refused afterwards.
        options: Keyword arguments, as pairs, so that the step stays hashable.
        names: Names of what comes out; empty keeps the channels' names.
    """

    path: str
    distribution: str = ""
    version: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    names: tuple[str, ...] = ()
    kind: ClassVar[str] = "plugin"

    def __post_init__(self) -> None:
        if self.path.count(":") != 1:
            raise ConfigError(
                f"the plug-in {self.path!r} is no import path", fix="write package.module:function"
            )

    def fit(self, x: NDArray[np.float32], frame: Frame) -> Step:  # noqa: ARG002
        """Record the installed version."""
        return replace(self, version=self.version or _installed(self.distribution))

    def apply(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the plug-in makes of the rows.

        Raises:
            ConfigError: If it is not installed, or in another version than recorded.
            DataError: If it gives back another number of rows.
        """
        if self.version != (here := _installed(self.distribution)):
            raise ConfigError(
                f"the plug-in {self.path} was recorded in version {self.version or 'none'} and {here or 'none'} is installed",
                fix=f"pip install '{self.distribution}=={self.version}'",
            )
        out = np.asarray(_load(self.path)(x, **dict(self.options)), dtype=np.float32)
        if len(out) != len(x):
            raise DataError(
                f"the plug-in {self.path} made {len(out)} rows of {len(x)}", fix="it must keep the rows"
            )
        return out

    def require_offered(self) -> None:
        """Refuse a function that no installed distribution offers as a plug-in.

        A pipeline that came from elsewhere must not choose among all functions of the machine that it runs on.

        Raises:
            ConfigError: If its distribution is not installed, or offers no such function under the entry points `GROUP`.
        """
        _installed(self.distribution)
        if self.path not in _offered(self.distribution):
            raise ConfigError(
                f"the distribution {self.distribution or 'of nobody'!r} offers no plug-in {self.path!r}",
                fix=f"declare it under the entry points {GROUP!r} of an installed distribution",
            )

    def frame(self, frame: Frame) -> Frame:
        """The declared names, or the same ones; no range is known."""
        return frame.unbounded(self.names or None, table=bool(self.names))


def _installed(distribution: str) -> str:
    """The installed version of a distribution."""
    if not distribution:
        return ""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"the plug-in's distribution {distribution!r} is not installed", fix=f"pip install {distribution}"
        ) from None


def _offered(distribution: str) -> set[str]:
    """The import paths that an installed distribution offers as plug-ins."""
    if not distribution:
        return set()
    points = importlib.metadata.distribution(distribution).entry_points
    return {point.value for point in points.select(group=GROUP)}


def _load(path: str) -> Any:
    """The function of an import path."""
    module, name = path.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the plug-in {path} cannot be imported: {error}", fix="install it, or mend the path"
        ) from error
