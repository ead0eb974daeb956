"""Personal layers beside a new shared body: re-fitted on the device's own labels, and kept only if its own score does not fall.

Rules of this file:
    * Without torch: a linear head, by `head`. The graph has one output and no name for what is under its head, so the
      features are read through the head itself: with rows of the identity as its weights, the outputs *are* features.
    * Whether that holds for a model is checked: the device's own head on the features read so must give the model's own
      outputs. A model for which it does not is left with the global head, by name.
    * What was fitted beside an earlier version is a start; one too many versions ago, or of none that is known, is not.
    * What was fitted beside this version stays; where a refresh is ordered it is fitted again, and stays if that does not pay.
    * Methods whose state is a whole model need `fedretrain[train]`: without it the global model serves.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.artifacts.inference import Model, device_params
from fedretrain.core.errors import DataError, UnsupportedModelError, UserError
from fedretrain.core.rng import seed_for
from fedretrain.core.types import ClientData, MethodKind
from fedretrain.edge import personal
from fedretrain.edge.head import Head, Refit, refresh
from fedretrain.edge.personal import Personal, Standing, state_of
from fedretrain.training.config import LocalTraining, OptimizerConfig
from fedretrain.training.keep import Verdict, verdict_of
from fedretrain.training.metrics import accuracy
from fedretrain.training.personal import personal_layout
from fedretrain.training.phase import Phase

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from fedretrain.artifacts.package import Package
    from fedretrain.core.params import Params
    from fedretrain.edge.config import RefitConfig
    from fedretrain.edge.examples import Stream

_TOLERANCE = 1e-3
"""Of logits, relative to the largest: sums of another order differ by far less, another layer after the head by far more."""


@dataclass(frozen=True)
class Outcome:
    """What became of the personal state.

    Attributes:
        params: What the device goes on with; empty: the global model.
        verdict: Of the re-fit; None where there was none to do.
        why: For people.
    """

    params: Params
    verdict: Verdict | None = None
    why: str = ""

    @property
    def news(self) -> str:
        """What people are told: nothing where there was too little to fit on."""
        return "" if self.verdict is Verdict.TOO_FEW else self.why


def personal_for(
    package: Package,
    folder: Path,
    stream: Stream,
    bases: Sequence[str],
    data: ClientData,
    config: RefitConfig,
    now: float,
    *,
    keep: bool = True,
    again: bool = False,
) -> Outcome:
    """The personal state for a version, re-fitted if it belongs to another one.

    Args:
        package: What is to serve.
        folder: Where personal parameters are.
        stream: Whose.
        bases: Digests that served here, oldest first; the last one is the version's.
        data: The device's labelled model inputs for this version, in the order of time.
        config: How.
        now: Seconds since the epoch.
        keep: Whether the result is written; for a candidate that is only scored it is not.
        again: Whether what was fitted beside this version is fitted again.

    Returns:
        What to go on with; what was kept is on the disk, as far as that has room.

    Raises:
        OSError: With `again`, if the disk would not have it: nothing has changed, and it is to be done later.
    """
    how = package.manifest.personalization
    if how.method is MethodKind.FEDAVG:
        return Outcome({})
    held, damaged = _held(folder, stream)
    standing = None if held is None else state_of(held.base, bases, config.most_behind)
    stays = _checked(package, held.params) if held and standing is Standing.CURRENT else Outcome({})
    if standing is Standing.CURRENT and not again:
        return stays
    start = held.params if held and standing is Standing.BEHIND else stays.params
    try:
        names = _head_names(package)
        head, found = _refitted(package, names, start, data, config)
    except UserError as error:  # it is no linear head, or the package's patterns fit nothing
        return replace(stays, why=damaged + error.what)
    why = f"{damaged}re-fit {found.verdict.value}: held-out accuracy {found.before:.3f} -> {found.after:.3f}"
    if head is None or (stays.params and found.verdict is not Verdict.KEPT):
        return Outcome(stays.params, found.verdict, why)
    params = {names[0]: head.weight, names[1]: head.bias}
    if keep:
        # A full disk: beside a new version it is fitted again after the next start.
        with contextlib.nullcontext() if again else contextlib.suppress(OSError):
            personal.save(folder, stream, Personal(params, package.digest, now))
    return Outcome(params, found.verdict, why)


def _held(folder: Path, stream: Stream) -> tuple[Personal | None, str]:
    """What is on the disk, and what is wrong with it."""
    try:
        return personal.load(folder, stream), ""
    except DataError as error:
        return None, f"{error.what}; "


def can_refit(package: Package) -> bool:
    """Whether the device itself can re-fit a version's personal state."""
    if package.manifest.personalization.method is MethodKind.FEDAVG:
        return False
    try:
        _head_names(package)
    except UserError:
        return False
    return True


def refitted(package: Package, data: ClientData, config: RefitConfig) -> Params:
    """The personal state that these examples alone lead to, from the global head on; empty: the global model.

    Args:
        package: A version for which `can_refit` holds.
        data: Labelled model inputs, in the order of time.
        config: How.
    """
    names = _head_names(package)
    try:
        head, _ = _refitted(package, names, {}, data, config)
    except UserError:  # the head is not the model's last layer: the device would serve the global model
        return {}
    return {} if head is None else {names[0]: head.weight, names[1]: head.bias}


def _checked(package: Package, params: Params) -> Outcome:
    try:
        device_params(package.manifest, package.weights, params)
    except UserError as error:
        return Outcome({}, None, error.what)
    return Outcome(params)


def _head_names(package: Package) -> tuple[str, str]:
    """Weight and bias of the linear head that is all of the personal state.

    Raises:
        UnsupportedModelError: If the personal state is anything else.
    """
    how, num_outputs = package.manifest.personalization, len(package.manifest.outputs)
    if how.method in {MethodKind.FEDPER, MethodKind.FEDREP}:
        layout = personal_layout(how.method, package.weights, how.patterns)
        shapes = dict(zip(layout.names, layout.shapes, strict=True))
        weights = [name for name, shape in shapes.items() if len(shape) == 2 and shape[0] == num_outputs]
        biases = [name for name, shape in shapes.items() if shape == (num_outputs,)]
        if len(shapes) == 2 and len(weights) == len(biases) == 1:
            return weights[0], biases[0]
    raise UnsupportedModelError(
        f"the personal state of {how.method.value} is not a linear head",
        where="personalization",
        fix="install fedretrain[train] on the device",
    )


def _refitted(
    package: Package, names: tuple[str, str], start: Params, data: ClientData, config: RefitConfig
) -> tuple[Head | None, Refit]:
    """The head to go on with (None: the global one), and what became of the re-fit.

    The re-fit must be as good as the global head and as the head that it began from; where it is not, the better of those two stays.
    """
    weights = package.weights
    base = Head(weights[names[0]], weights[names[1]])
    split = config.keep.split(data)
    if split is None:
        return None, Refit(base, Verdict.TOO_FEW, math.nan, math.nan)
    features = ClientData(features_under(package, names, data.x), data.y)
    fits = set(start) == set(names) and all(start[name].shape == weights[name].shape for name in names)
    begin = Head(start[names[0]], start[names[1]]) if fits else base
    local = LocalTraining(
        batch_size=config.batch_size, epochs=config.epochs, optimizer=OptimizerConfig(lr=config.lr)
    )
    seed = seed_for(0, package.manifest.version, 0, "personal")
    found = refresh(begin, features, local, Phase("personal", config.epochs), seed, config.keep)
    newest = ClientData(features.x[len(split[0]) :], features.y[len(split[0]) :])
    plain = accuracy(base.logits(newest.x), newest.y)
    if found.verdict is Verdict.KEPT:
        verdict = verdict_of(found.head.packed(), plain, found.after, config.keep.tolerance)
        if verdict is Verdict.KEPT:
            return found.head, found
        found = replace(found, verdict=verdict, before=plain)
    is_better = fits and np.isfinite(begin.packed()).all() and found.before >= plain
    return (begin if is_better and found.verdict is not Verdict.TOO_FEW else None), found


def features_under(package: Package, names: tuple[str, str], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[N, H]`` what a model's linear head is given, read through the head.

    Args:
        package: The model.
        names: Weight ``[C, H]`` and bias ``[C]`` of the head.
        x: ``[N, *F]`` model inputs.

    Raises:
        UnsupportedModelError: If the head is not the model's last layer.
    """
    weights = package.weights
    head = Head(weights[names[0]], weights[names[1]])
    num_outputs, num_features = head.weight.shape
    outputs = Model(package.graph, weights).predict(x)
    features = np.zeros((len(x), num_features), dtype=np.float32)
    for first in range(0, num_features, num_outputs):
        if outputs.shape[1:] != (num_outputs,):
            break  # another layer comes after it
        count = min(num_outputs, num_features - first)
        reader = np.zeros_like(head.weight)
        reader[np.arange(count), first + np.arange(count)] = 1.0
        model = Model(package.graph, {**weights, names[0]: reader, names[1]: np.zeros_like(head.bias)})
        features[:, first : first + count] = model.predict(x)[:, :count]
    largest = max(float(np.abs(outputs).max(initial=0.0)), 1.0)
    logits = head.logits(features)
    if logits.shape != outputs.shape or not np.allclose(logits, outputs, rtol=0.0, atol=_TOLERANCE * largest):
        raise UnsupportedModelError(
            "the personal layer is not the model's last one",
            where="personalization",
            fix="install fedretrain[train] on the device",
        )
    return features
