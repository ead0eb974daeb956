"""A run folder: written so that half of one is never taken for a whole one, and read back with the same care.

Rules of this file:
    * ``<root>/<experiment>/<time>/`` is made, and proven writable, before a run begins. It is *unfinished* until it
      holds `summary.json`, which is written last, after every file that it lists with its sha256.
    * A file is written beside its place, synced, and renamed: a reader sees all of it or none. ``<root>/latest``
      is replaced the same way, and only after success.
    * `load_run` checks schema and digests; what is unfinished or damaged is one line to its user.
    * What the disk refuses (no permission, no space, a file where a folder should be) is a `UserError`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedretrain.core.errors import DataError, UserError
from sim.plain import from_plain, to_plain
from sim.results import SCHEMA_VERSION, DeviceScore, RoundRecord, Run, Summary
from sim.tables import read_table, table_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from fedretrain.core.params import Params
    from fedretrain.privacy.event import PrivacyEvent

SUMMARY, CONFIG, REPORT = "summary.json", "config.yaml", "report.html"
ROUNDS, DEVICES, WEIGHTS, LEDGER = "rounds.parquet", "devices.parquet", "weights", "ledger"
LATEST = "latest"
_FIXES = {
    errno.ENOSPC: "free some space, or choose another folder with output_dir=PATH",
    errno.EDQUOT: "free some space, or choose another folder with output_dir=PATH",
}


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line.

    Raises:
        UserError: For any OSError, with its reason, the path and what to do.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        fix = _FIXES.get(error.errno or 0, "choose a folder that you may write to with output_dir=PATH")
        raise UserError(f"cannot write the results: {reason}", where=str(where), fix=fix) from error


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        root: Folder of all outputs.
        path: This run's own folder, ``root/experiment/time``.
    """

    root: Path
    path: Path

    @classmethod
    def create(cls, root: Path, experiment: str, started: datetime) -> RunFolder:
        """Make a new folder and prove that it can be written to, before any work is done.

        Args:
            root: Folder of all outputs; made if absent.
            experiment: Name of the experiment.
            started: When the run began; two runs of one second get different folders.

        Raises:
            UserError: If the folder cannot be made or written to.
        """
        name = started.strftime("%Y-%m-%d_%H-%M-%S")
        with disk_errors(root):
            parent = root / re.sub(r"[^\w.-]+", "-", experiment)
            parent.mkdir(parents=True, exist_ok=True)
            path = _make_new(parent, name)
            folder, probe = cls(root.absolute(), path.absolute()), path / ".probe"
            try:
                _write_file(probe, b"\0" * 4096)
                probe.unlink()
            except OSError:
                folder.discard()
                raise
        return folder

    def write(self, name: str, data: bytes) -> str:
        """Write one file so that a reader sees all of it or none, and return its sha256.

        Raises:
            UserError: If the disk refuses it.
        """
        target = self.path / name
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_file(target, data)
        return hashlib.sha256(data).hexdigest()

    def discard(self) -> None:
        """Remove the folder of a run that never began, and its experiment's if nothing else is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    @property
    def finished(self) -> bool:
        """Whether it holds a whole run."""
        return (self.path / SUMMARY).is_file()

    def finish(
        self,
        run: Run,
        weights: Mapping[str, Params],
        report: str,
        ledgers: Mapping[str, Sequence[PrivacyEvent]],
    ) -> Run:
        """Write everything, `summary.json` last, then point ``latest`` here.

        Args:
            run: The finished run.
            weights: Final shared parameters by file name without its suffix: the arm, or ``arm-seed``.
            report: `report.html`'s text.
            ledgers: What every charged round of an arm with DP cost, in order, by ``arm-seed``: its epsilon can be
                computed again from that file alone.

        Returns:
            The run, its summary naming every file with its sha256.

        Raises:
            UserError: If the disk refuses a file. The folder is then unfinished and is not ``latest``.
        """
        import safetensors.numpy

        files = {
            CONFIG: self.write(CONFIG, run.config.encode()),
            ROUNDS: self.write(ROUNDS, table_bytes(RoundRecord, run.rounds)),
            DEVICES: self.write(DEVICES, table_bytes(DeviceScore, run.devices)),
        }
        for name, params in weights.items():
            stored = f"{WEIGHTS}/{name}.safetensors"
            files[stored] = self.write(
                stored, safetensors.numpy.save({k: v.copy() for k, v in params.items()})
            )
        for name, events in ledgers.items():
            stored = f"{LEDGER}/{name}.jsonl"
            lines = (json.dumps(event.to_dict(), allow_nan=False) + "\n" for event in events)
            files[stored] = self.write(stored, "".join(lines).encode())
        files[REPORT] = self.write(REPORT, report.encode())
        summary = replace(run.summary, files=files)
        self.write(SUMMARY, (json.dumps(to_plain(summary), indent=2, allow_nan=False) + "\n").encode())
        self.point_latest()
        return replace(run, summary=summary)

    def point_latest(self) -> None:
        """Make this run the one that ``latest`` names."""
        link, fresh = self.root / LATEST, self.root / f".{LATEST}-{os.getpid()}"
        with disk_errors(link):
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(os.path.relpath(self.path, self.root), target_is_directory=True)
            fresh.replace(link)


def _make_new(parent: Path, name: str) -> Path:
    """A folder that did not exist: two runs of one second, or two jobs of a sweep, never share one."""
    for attempt in range(1, 10_000):
        path = parent / (name if attempt == 1 else f"{name}_{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(errno.EEXIST, "too many runs of one second", str(parent))


def _write_file(target: Path, data: bytes) -> None:
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def load_run(path: Path) -> Run:
    """Read a finished run.

    Args:
        path: A run folder, or ``outputs/latest``.

    Raises:
        DataError: If it is no run folder, is unfinished, is damaged, or has another schema.
    """
    if not path.is_dir():
        raise DataError("no such run", where=str(path), fix="name a folder such as outputs/latest")
    if not (path / SUMMARY).is_file():
        raise DataError(
            "this run is unfinished or not a run", where=str(path), fix=f"name a folder that holds {SUMMARY}"
        )
    summary = _load_summary(path / SUMMARY)
    for name, digest in summary.files.items():
        _check_file(path / name, digest)
    with _damage(path):
        return Run(
            summary=summary,
            rounds=read_table(RoundRecord, path / ROUNDS),
            devices=read_table(DeviceScore, path / DEVICES),
            config=(path / CONFIG).read_text(encoding="utf-8"),
        )


def _load_summary(file: Path) -> Summary:
    with _damage(file):
        plain = json.loads(file.read_text(encoding="utf-8"))
        version = plain.get("schema_version") if isinstance(plain, dict) else None
        if version != SCHEMA_VERSION:
            raise DataError(
                f"this run has schema version {version}, this code reads {SCHEMA_VERSION}",
                where=str(file),
                fix="read it with the version of fedretrain that wrote it (environment.code_version)",
            )
        return from_plain(Summary, plain)


def _check_file(file: Path, digest: str) -> None:
    with _damage(file):
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != digest:
        raise DataError(
            "this file is not the one that the run wrote", where=str(file), fix="restore it, or run again"
        )


@contextlib.contextmanager
def _damage(where: Path) -> Iterator[None]:
    """Whatever a damaged file makes a parser raise becomes one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"damaged run: {error}", where=str(where), fix="restore it, or run again") from error
