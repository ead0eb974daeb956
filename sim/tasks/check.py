"""`python -m sim task check PATH`: run a task's parts in order and say precisely what is wrong.

Rules of this file:
    * Each check is a small function that adds lines to a list: what is wrong, where, how to mend it.
    * A check that needs an earlier one's result does not run without it, so one fault gives one line.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import ConfigError, UserError
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.schema import Schema
from sim.datasets.base import SensorDataset

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_PARTS = {"SCHEMA": Schema, "CLASS_NAMES": tuple, "MODEL": dict}


@dataclass
class _Findings:
    """What was found so far."""

    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_task(path: Path | str) -> str:
    """Run every check on a task.

    Args:
        path: The task's folder, or its ``task.py``.

    Returns:
        A summary for a person, with notes on what is allowed but worth knowing.

    Raises:
        ConfigError: Naming everything that is wrong, numbered, in one line.
    """
    file = Path(path)
    file = file / "task.py" if file.is_dir() else file
    found = _Findings()
    module = _import(file, found)
    if module is not None and _parts(module, found):
        dataset = _dataset(module, found)
        if dataset is not None:
            inputs = _inputs(module, dataset, found)
            if inputs is not None:
                _model(module, dataset, inputs, found)
    _config(file.parent, found)
    if found.wrong:
        listed = "; ".join(f"({i}) {line}" for i, line in enumerate(found.wrong, 1))
        raise ConfigError(f"the task has {len(found.wrong)} fault(s): {listed}", where=str(file))
    assert dataset is not None
    lines = [
        f"{file} is sound: {len(dataset)} rows, {dataset.num_streams} devices, {dataset.num_outputs} output(s)"
    ]
    return "\n".join(lines + [f"note: {note}" for note in found.notes])


def _import(file: Path, found: _Findings) -> ModuleType | None:
    """The module ``task.py``, or a line that says which of its lines fails."""
    if not file.is_file():
        found.wrong.append(f"there is no {file.name} - make a task with: python -m sim task new NAME")
        return None
    spec = importlib.util.spec_from_file_location(f"_task_{abs(hash(str(file.resolve())))}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001 - whatever the user's file raises
        found.wrong.append(f"task.py cannot be imported: {_told(error, file)}")
        return None
    finally:
        sys.modules.pop(spec.name, None)
    return module


def _told(error: BaseException, file: Path) -> str:
    """An error in one line, with the last line of the user's file on its way."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    steps = [s for s in traceback.extract_tb(error.__traceback__) if Path(s.filename).name == file.name]
    place = f"line {steps[-1].lineno}: " if steps else ""
    return f"{place}{type(error).__name__}: {error}".replace("\n", " ")


def _parts(module: ModuleType, found: _Findings) -> bool:
    """True if everything that a task must define is there and of its type."""
    before = len(found.wrong)
    for name, kind in _PARTS.items():
        value = getattr(module, name, None)
        if not isinstance(value, kind):
            what = "is missing" if value is None else f"is a {type(value).__name__}"
            found.wrong.append(f"{name} {what} - define it as a {kind.__name__}")
    for name in ("pipeline", "load"):
        if not callable(getattr(module, name, None)):
            found.wrong.append(f"the function {name}() is missing - define it")
    return len(found.wrong) == before


def _dataset(module: ModuleType, found: _Findings) -> SensorDataset | None:
    """What ``load()`` gives, held to the schema, its ranges, and the class names."""
    file = Path(str(module.__file__))
    try:
        dataset = module.load()
    except Exception as error:  # noqa: BLE001 - whatever the user's function raises
        found.wrong.append(f"load() fails: {_told(error, file)}")
        return None
    if not isinstance(dataset, SensorDataset):
        found.wrong.append(f"load() gives a {type(dataset).__name__} - return a SensorDataset")
        return None
    if dataset.schema.digest != module.SCHEMA.digest:
        found.wrong.append("load() gives data of another schema than SCHEMA - pass schema=SCHEMA")
    if tuple(dataset.class_names) != tuple(module.CLASS_NAMES):
        found.wrong.append(
            f"load() names the classes {dataset.class_names}, CLASS_NAMES says {module.CLASS_NAMES}"
        )
    try:
        dataset.schema.validate(dataset.x, where="load()", ranges=True)
    except UserError as error:
        found.wrong.append(f"the data leaves the declared ranges: {error}")
    _coverage(dataset, found)
    return dataset


def _coverage(dataset: SensorDataset, found: _Findings) -> None:
    """Devices without training rows are wrong; classes that a device lacks are worth a note."""
    past = np.bincount(dataset.stream[~dataset.future], minlength=dataset.num_streams)
    for device in np.flatnonzero(past == 0):
        name = dataset.stream_names[int(device)]
        found.wrong.append(f"the device {name!r} has no training rows - change the split, or leave it out")
    if not dataset.class_names:
        return
    counts = np.bincount(dataset.y[~dataset.future], minlength=dataset.num_outputs)
    found.wrong.extend(
        f"the class {dataset.class_names[int(c)]!r} has no training rows - drop it, or add some"
        for c in np.flatnonzero(counts == 0)
    )
    rarest = int(np.argmin(counts))
    if 0 < counts[rarest] < counts.max() / 20:
        found.notes.append(
            f"class {dataset.class_names[rarest]!r} has {counts[rarest]} of {counts.sum()} training rows"
        )


def _inputs(module: ModuleType, dataset: SensorDataset, found: _Findings) -> np.ndarray[Any, Any] | None:
    """Model inputs of one device, after holding the pipeline to its rules."""
    file = Path(str(module.__file__))
    past = ~dataset.future
    rows = dataset.rows_of(0)
    try:
        pipeline = module.pipeline()
        if not isinstance(pipeline, Pipeline):
            found.wrong.append(f"pipeline() gives a {type(pipeline).__name__} - return a Pipeline")
            return None
        fitted = pipeline.fit(dataset.x[past], dataset.schema, device=dataset.stream[past])
        own = fitted.localize(dataset.x[dataset.rows_of(0, future=False)])
        inputs = own.apply(dataset.x[rows])
        again = Pipeline.from_json(own.to_json())
    except Exception as error:  # noqa: BLE001 - whatever the user's steps raise
        found.wrong.append(f"the pipeline fails: {_told(error, file)}")
        return None
    if not np.array_equal(again.apply(dataset.x[rows]), inputs):
        found.wrong.append("the pipeline differs after a JSON round trip - keep steps to plain values")
    alone = np.concatenate([own.apply(dataset.x[rows[i : i + 1]]) for i in range(len(rows))])
    if not np.allclose(alone, inputs, rtol=1e-4, atol=1e-5):
        found.wrong.append("a row's inputs depend on the rows beside it - a step must work row by row")
    if fitted.pooled_steps:
        found.notes.append(
            f"the steps {', '.join(fitted.pooled_steps)} are fitted on pooled data: refused with differential privacy on"
        )
    spread = float(inputs.std())
    if not 0.05 < spread < 20.0:
        found.notes.append(f"model inputs have the standard deviation {spread:.3g}: scale them to about 1")
    return inputs


def _model(
    module: ModuleType, dataset: SensorDataset, inputs: np.ndarray[Any, Any], found: _Findings
) -> None:
    """Build the model and run two rows through it."""
    import torch

    from fedretrain.training import models

    spec = dict(module.MODEL)
    kind, path, options = spec.pop("kind", "mlp"), spec.pop("path", ""), spec.pop("options", {})
    if spec or (kind == "custom") != bool(path):
        found.wrong.append("MODEL takes kind, options, and with kind=custom a path - mend its keys")
        return
    shipped: dict[str, Callable[..., models.ModelBundle]] = {
        "mlp": models.mlp,
        "cnn1d": models.cnn1d,
        "gru": models.gru,
    }
    if kind != "custom" and kind not in shipped:
        found.wrong.append(f"MODEL has the kind {kind!r} - choose from {', '.join(shipped)}, custom")
        return
    shape, outputs = inputs.shape[1:], dataset.num_outputs
    try:
        if kind == "custom":
            bundle = models.from_path(path, shape, outputs, 0, **options)
        else:
            bundle = shipped[kind](shape, outputs, 0, **options)
        with torch.no_grad():
            out = bundle.module(torch.as_tensor(inputs[:2]))
    except Exception as error:  # noqa: BLE001 - whatever the user's model raises
        found.wrong.append(f"the model fails on inputs {tuple(shape)}: {_told(error, Path('task.py'))}")
        return
    if tuple(out.shape) != (len(inputs[:2]), outputs):
        found.wrong.append(f"the model gives {tuple(out.shape)} for 2 rows - expected (2, {outputs})")


def _config(folder: Path, found: _Findings) -> None:
    """The experiment's file: there, readable, and naming this task."""
    import yaml

    name = folder.resolve().name
    file = folder / "conf" / "experiment" / f"{name}.yaml"
    if not file.is_file():
        found.notes.append(f"there is no conf/experiment/{name}.yaml: the task cannot be run by name")
        return
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        found.wrong.append(f"{file.name} is not YAML: {str(error).splitlines()[0]}")
        return
    dataset = content.get("dataset", {}) if isinstance(content, dict) else {}
    named = dataset.get("name") if isinstance(dataset, dict) else None
    if named != f"{name}.task:load":
        found.wrong.append(f"{file.name} names the data set {named!r} - write dataset.name: {name}.task:load")
