"""The manifest of a model version: what it consists of, how it decides and where it comes from.

Rules of this file:
    * The digest of a manifest's bytes is *the* identity of a model version, in assignments and in signed targets.
    * One content, one sequence of bytes: sorted keys, no spaces, finite numbers; whatever does not encode to the bytes
      that were read is refused, so that nobody reads a field that nobody signed.
    * Manifests come from outside. Size, unknown fields, types, digests and names are checked before anything is used,
      and each refusal is a `DataError` that names the field.
    * A name never is a path; texts are printable.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from enum import StrEnum

from fedretrain.artifacts.decision import Calibration, Decision
from fedretrain.artifacts.store import check_digest
from fedretrain.core.build import build, plain
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.types import MethodKind, Objective

FORMAT = 1
MAX_BYTES = 256 * 1024
MAX_BLOB_BYTES = 2**31  # what ONNX, a protobuf message, can hold
MAX_TEXT = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_MAX_NAME = 64
_MAX_INTEGER = 2**53 - 1  # what every reader of JSON holds exactly

Scalar = str | int | float | bool
"""A hyperparameter's value."""


def check_name(name: str, where: str) -> str:
    """The name, if it may name a file, a target and a row: letters, digits, ``_``, ``-`` and single dots.

    Raises:
        DataError: If it is anything else, such as a path.
    """
    if not isinstance(name, str) or len(name) > _MAX_NAME or _NAME.fullmatch(name) is None:
        raise DataError(
            f"{name!r} is not a name",
            where=where,
            fix=f"use at most {_MAX_NAME} letters, digits, '_', '-' and single dots inside",
        )
    return name


@dataclass(frozen=True)
class Blob:
    """A file of the package, by content. Falsy where there is none.

    Attributes:
        digest: SHA-256; empty for none.
        size_bytes: Its length, so that a download has a limit before it begins.
    """

    digest: str = ""
    size_bytes: int = 0

    def __post_init__(self) -> None:
        if self.digest:
            check_digest(self.digest)
        _check_integer(self.size_bytes, "size_bytes", 0, MAX_BLOB_BYTES)
        _demand(bool(self.digest) or not self.size_bytes, "a blob without a digest has a size", "size_bytes")

    def __bool__(self) -> bool:
        return bool(self.digest)

    @classmethod
    def of(cls, content: bytes) -> Blob:
        """The reference to some bytes."""
        return cls(hashlib.sha256(content).hexdigest(), len(content))

    def check(self, content: bytes, what: str) -> bytes:
        """The content, if it is what this refers to.

        Raises:
            DataError: If it is not.
        """
        if Blob.of(content) != self:
            raise DataError(
                f"the {what} is damaged: its bytes do not hash to {self.digest}",
                where=what,
                fix="fetch it again",
            )
        return content


@dataclass(frozen=True)
class Personalization:
    """How a device's own state enters the model.

    Attributes:
        method: Which method trained it.
        patterns: fnmatch patterns of the personal parameters (`fedper`, `fedrep`).
        fixed: Names of parameters that are not trained (statistics of a normalisation): no method blends them.
    """

    method: MethodKind = MethodKind.FEDAVG
    patterns: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", MethodKind(self.method))
        for name in ("patterns", "fixed"):
            object.__setattr__(self, name, _texts(getattr(self, name), f"personalization.{name}"))


class Strategy(StrEnum):
    """How the weights were made."""

    FEDERATED = "federated"
    CENTRAL = "central"
    IMPORTED = "imported"


@dataclass(frozen=True)
class TrainingRecord:
    """Where the weights come from: enough to ask for the same training again, and to say what it cost.

    Attributes:
        strategy: How they were made.
        recipe: The strategy's own name, for example ``"incremental"``.
        snapshot: Reference of the data that was trained on; empty where it never left the devices.
        features: Pointer into a feature store; empty for none.
        data_from_at: Begin of the data window, seconds since the epoch.
        data_until_at: Its end.
        cohort: Clients expected in a round; 0 for central training.
        rounds: Rounds that were released.
        epsilon: What training spent under differential privacy; None without it.
        delta: The probability that goes with it; None without it.
        scope: What epsilon covers and what it does not.
        hyperparameters: Pairs of a dotted name and a value, sorted by name.
        code_version: Of the software that trained.
        policy: Digest of the policy file; empty for none.
    """

    strategy: Strategy = Strategy.IMPORTED
    recipe: str = ""
    snapshot: str = ""
    features: str = ""
    data_from_at: float = 0.0
    data_until_at: float = 0.0
    cohort: int = 0
    rounds: int = 0
    epsilon: float | None = None
    delta: float | None = None
    scope: str = ""
    hyperparameters: tuple[tuple[str, Scalar], ...] = ()
    code_version: str = ""
    policy: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", Strategy(self.strategy))
        for name in ("recipe", "snapshot", "features", "scope", "code_version"):
            _check_text(getattr(self, name), f"training.{name}")
        for name in ("data_from_at", "data_until_at", "epsilon", "delta"):
            object.__setattr__(self, name, _number(getattr(self, name), f"training.{name}"))
        for name in ("cohort", "rounds"):
            _check_integer(getattr(self, name), f"training.{name}", 0)
        _demand(self.data_from_at <= self.data_until_at, "the data window ends before it begins", "training")
        _demand(
            (self.epsilon is None) == (self.delta is None),
            "epsilon and delta go together",
            "training.epsilon",
        )
        if self.policy:
            check_digest(self.policy)
        object.__setattr__(self, "hyperparameters", _pairs(self.hyperparameters))


@dataclass(frozen=True)
class Manifest:
    """A model version.

    Attributes:
        population: Whose model it is: task and device set.
        version: Counts up within the population.
        created_at: Seconds since the epoch.
        weights: The full file of weights.
        graph: The ONNX graph without weights.
        pipeline: From raw samples to model inputs, with the schema in it (JSON).
        schema: Digest of the schema: equal exactly where a device's samples fit.
        sanity: The sanity vectors.
        input_shape: Of one row of model inputs.
        outputs: The names of the outputs: classes, or one value.
        objective: Classes or a value.
        base: Digest of the weights that it was trained from; empty for none.
        delta: From the base to the weights; none where the full file is smaller, or there is no base.
        baseline: Bins and baseline of monitoring; may be missing.
        report: The evaluation report; devices do not need it; may be missing.
        calibration: From outputs to calibrated outputs.
        decision: From calibrated outputs to a class.
        personalization: How a device's own state enters.
        training: Where the weights come from.
        format: Of the manifest.
    """

    population: str
    version: int
    created_at: float
    weights: Blob
    graph: Blob
    pipeline: Blob
    schema: str
    sanity: Blob
    input_shape: tuple[int, ...]
    outputs: tuple[str, ...]
    objective: Objective = Objective.CLASSIFICATION
    base: str = ""
    delta: Blob = field(default_factory=Blob)
    baseline: Blob = field(default_factory=Blob)
    report: Blob = field(default_factory=Blob)
    calibration: Calibration = field(default_factory=Calibration)
    decision: Decision = field(default_factory=Decision)
    personalization: Personalization = field(default_factory=Personalization)
    training: TrainingRecord = field(default_factory=TrainingRecord)
    format: int = FORMAT

    def __post_init__(self) -> None:
        _demand(self.format == FORMAT, f"format {self.format!r} cannot be read", "format", f"format {FORMAT}")
        check_name(self.population, "population")
        _check_integer(self.version, "version", 0)
        object.__setattr__(self, "created_at", _number(self.created_at, "created_at"))
        object.__setattr__(self, "objective", Objective(self.objective))
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        object.__setattr__(self, "outputs", _texts(self.outputs, "outputs"))
        self._check_files()
        self._check_outputs()

    def _check_files(self) -> None:
        for name in ("weights", "graph", "pipeline", "sanity"):
            _demand(bool(getattr(self, name)), f"there is no {name}", name, "give the file's digest and size")
        check_digest(self.schema)
        if self.base:
            check_digest(self.base)
        _demand(bool(self.base) or not self.delta, "there is a delta and no base", "delta")
        _demand(
            self.delta.size_bytes < self.weights.size_bytes,
            "the delta is not smaller than the weights",
            "delta",
        )

    def _check_outputs(self) -> None:
        _demand(0 < len(self.input_shape) <= 8, f"{self.input_shape!r} is no shape", "input_shape")
        for size in self.input_shape:
            _check_integer(size, "input_shape", 1)
        count = len(self.outputs)
        _demand(count > 0 and len(set(self.outputs)) == count, "an output has no name of its own", "outputs")
        is_classes = self.objective is Objective.CLASSIFICATION
        _demand(is_classes or count == 1, f"a regression has one output, not {count}", "outputs")
        _demand(
            is_classes or not self.decision.weights, "a regression has no class weights", "decision.weights"
        )
        for name, values in (
            ("calibration.offsets", self.calibration.offsets),
            ("decision.weights", self.decision.weights),
        ):
            _demand(len(values) in {0, count}, f"there are {len(values)} for {count} outputs", name)

    def to_bytes(self) -> bytes:
        """The canonical JSON: ASCII, sorted keys, no spaces."""
        content = json.dumps(plain(self), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        _demand(len(content) <= MAX_BYTES, f"it has {len(content)} bytes", "manifest", f"at most {MAX_BYTES}")
        return content

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """The manifest of canonical bytes.

        Raises:
            DataError: If they are anything but what `to_bytes` writes.
        """
        _demand(len(content) <= MAX_BYTES, f"it has {len(content)} bytes", "manifest", f"at most {MAX_BYTES}")
        try:
            manifest = build(cls, json.loads(content))
        except ConfigError as error:
            raise DataError(error.what, where=f"manifest: {error.where}", fix=error.fix) from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"this is not a manifest: {error}", where="manifest", fix="fetch it again"
            ) from error
        _demand(
            manifest.to_bytes() == content,
            "the manifest is not in its canonical form",
            "manifest",
            "write it with Manifest.to_bytes: another form has another digest",
        )
        return manifest

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes: the identity of the model version."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def _demand(holds: bool, what: str, where: str, fix: str = "") -> None:
    if not holds:
        raise DataError(what, where=where, fix=fix)


def _check_integer(value: int, where: str, low: int, high: int = _MAX_INTEGER) -> None:
    whole = type(value) is int and low <= value <= high
    _demand(whole, f"{value!r} is not a whole number from {low} to {high}", where)


def _number(value: float | None, where: str) -> float | None:
    """A finite float, so that 8 and 8.0 give one digest, and so do 0.0 and -0.0."""
    if value is None:
        return None
    _demand(isinstance(value, (int, float)) and math.isfinite(value), f"{value!r} is no finite number", where)
    return float(value) + 0.0


def _check_text(value: str, where: str) -> str:
    ok = isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()
    _demand(ok, f"{str(value)[:80]!r} is not a printable text of at most {MAX_TEXT} characters", where)
    return value


def _texts(values: tuple[str, ...], where: str) -> tuple[str, ...]:
    texts = tuple(_check_text(value, where) for value in values)
    _demand(all(texts), "a name is empty", where)
    return texts


def _pairs(pairs: tuple[tuple[str, Scalar], ...]) -> tuple[tuple[str, Scalar], ...]:
    """Hyperparameters, checked and sorted by name."""
    where = "training.hyperparameters"
    for name, value in pairs:
        _check_text(name, where)
        if isinstance(value, str):
            _check_text(value, where)
        elif type(value) is int:
            _check_integer(value, where, -_MAX_INTEGER)
        else:
            _demand(isinstance(value, bool) or math.isfinite(value), f"{name} is {value!r}", where)
    names = [name for name, _ in pairs]
    _demand(len(set(names)) == len(names), "a hyperparameter is given twice", where)
    return tuple(sorted((name, value) for name, value in pairs))
