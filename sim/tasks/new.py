"""`python -m sim task new NAME`: a folder with a working task of one's own to change.

What it holds: ``task.py`` (schema, pipeline, classes, model, loader), ``sample.csv`` (four made-up devices),
``conf/experiment/NAME.yaml`` and ``test_task.py``. It is sound and runs as it is.
"""

from __future__ import annotations

import importlib.util
import keyword
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TEMPLATES = Path(__file__).parent / "templates"
_FILES = {
    "task.py.txt": "task.py",
    "test_task.py.txt": "test_task.py",
    "experiment.yaml.txt": "conf/experiment/@NAME@.yaml",
}
_DEVICES, _SECONDS, _RATE_HZ = 4, 24, 10


def new_task(name: str, folder: Path | str = ".") -> str:
    """Scaffold a task.

    Args:
        name: A Python name, such as ``pump_health``: the folder's, the experiment's and the package's.
        folder: Where the folder `name` is made.

    Returns:
        What was made and what to do next, for a person.

    Raises:
        ConfigError: If the name will not do, or the folder is there already or cannot be written.
    """
    _check_name(name)
    target = Path(folder) / name
    if target.exists():
        raise ConfigError(
            f"{target} is there already; nothing was changed", where="task new", fix="choose another name"
        )
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as scratch:
            _write(Path(scratch) / name, name)
            (Path(scratch) / name).replace(target)  # whole or not at all
    except OSError as error:
        raise ConfigError(
            f"the task cannot be written: {error.strerror}",
            where=str(target),
            fix="choose a folder you may write to",
        ) from error
    files = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    return (
        f"made {target}: {', '.join(files)}\n"
        f"check it:  python -m sim task check {target}\n"
        f"run it:    python -m sim --config-dir {target}/conf experiment={name}   (from {Path(folder).resolve()})"
    )


def _check_name(name: str) -> None:
    """Refuse a name that cannot be imported, or that another module has."""
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or not name.isascii():
        raise ConfigError(
            f"{name!r} is not a name for a task",
            where="task new",
            fix="use letters, digits and _, such as pump_health",
        )
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:
        raise ConfigError(
            f"a module {name!r} is installed already", where="task new", fix="choose another name"
        )


def _write(target: Path, name: str) -> None:
    """Every file of the task."""
    for template, path in _FILES.items():
        place = target / path.replace("@NAME@", name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(
            (_TEMPLATES / template).read_text(encoding="utf-8").replace("@NAME@", name), encoding="utf-8"
        )
    (target / "sample.csv").write_text(_sample(), encoding="utf-8")
    shutil.copystat(target / "task.py", target / "sample.csv")


def _sample() -> str:
    """Four devices that rest and shake, 10 samples a second: each hangs at its own angle."""
    lines = ["device,time,label,ax,ay,az"]
    for device in range(_DEVICES):
        for label, name in enumerate(("rest", "shake")):
            signal = _signal(device, label)
            start = label * _SECONDS
            lines += [
                f"sensor{device + 1},{start + t / _RATE_HZ:.1f},{name},{row[0]:.3f},{row[1]:.3f},{row[2]:.3f}"
                for t, row in enumerate(signal)
            ]
    return "\n".join(lines) + "\n"


def _signal(device: int, label: int) -> NDArray[np.float64]:
    """``[T, 3]`` in g."""
    length = _SECONDS * _RATE_HZ
    seeds = rng.seeds_for(0, -1, np.array([10 * device + label]), "task/sample")
    noise = rng.normals(seeds, 3 * length).reshape(length, 3)
    tilt = 0.3 * device
    gravity = np.array([np.sin(tilt), 0.0, np.cos(tilt)])
    swing = np.sin(2.0 * np.pi * (1.5 + 0.1 * device) * np.arange(length) / _RATE_HZ)[:, None]
    return gravity + label * swing * np.array([0.6, 0.9, 0.2]) + (0.02 + 0.1 * label) * noise
