"""What a device's personal state is, and the model that it makes of shared parameters; no torch.

Rules of this file:
    * One rule for each method, for numpy arrays and torch tensors alike: training, the simulated fleet and the device
      predict with the same parameters.
    * Without any personal state a device has the global model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np

from fedretrain.core.params import Layout
from fedretrain.core.types import MethodKind
from fedretrain.training.partition import ParamPartition

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

ALPHA = "apfl.alpha"
"""APFL's mixing weight, a 0-d parameter of the personal state."""


class _Leaf(Protocol):
    """An array or a tensor."""

    def __add__(self, other: Self, /) -> Self: ...
    def __sub__(self, other: Self, /) -> Self: ...
    def __mul__(self, other: Self, /) -> Self: ...


LeafT = TypeVar("LeafT", bound=_Leaf)


def personal_layout(method: MethodKind, params: Mapping[str, Any], patterns: Collection[str]) -> Layout:
    """The packed form of a method's personal state (no entries for `fedavg`).

    Args:
        method: Which method.
        params: Every parameter of the model.
        patterns: fnmatch patterns of the personal parameters; only `fedper` and `fedrep` read them.

    Raises:
        ConfigError: If the patterns do not fit the model.
    """
    if method is MethodKind.FEDAVG:
        return Layout.of({})
    if method in {MethodKind.FEDPER, MethodKind.FEDREP}:
        names = ParamPartition.by_patterns(params, patterns).personal
        return Layout.of({name: params[name] for name in names})
    if method is MethodKind.APFL:
        return Layout.of({**params, ALPHA: np.zeros((), dtype=np.float32)})
    return Layout.of(params)


def effective_params(
    method: MethodKind,
    shared: Mapping[str, LeafT],
    personal: Mapping[str, LeafT],
    fixed: Collection[str] = (),
) -> dict[str, LeafT]:
    """The parameters that a device predicts with.

    Args:
        method: Which method.
        shared: The global model's parameters, as they were received.
        personal: The device's own state; empty if it has none.
        fixed: Names that are not trained (statistics of a normalisation): they are not blended, the device keeps its own.
    """
    if not personal or method is MethodKind.FEDAVG:
        return dict(shared)
    if method in {MethodKind.FEDPER, MethodKind.FEDREP}:
        return {**shared, **personal}
    if method is MethodKind.APFL:
        alpha = personal[ALPHA]
        return {
            name: personal[name] if name in fixed else leaf + alpha * (personal[name] - leaf)
            for name, leaf in shared.items()
        }
    return dict(personal)
