"""From raw samples to model inputs: a declared list of steps that the simulator and the device run alike.

Rules of this file:
    * A pipeline is a value: steps, the schema that it reads, and the numbers that `fit` froze. It round-trips through
      JSON, which is how it lives in a model package.
    * `apply` is a pure function of its input, row by row: a row's model inputs never depend on the rows beside it.
    * Output is float32 and finite, or a DataError says which row and feature is not.
    * What the steps cannot say is an installed plug-in, pinned by name and version (`plugin.PlugIn`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import DataError, PrivacyError
from fedretrain.features import steps as step_module
from fedretrain.features.frame import Frame
from fedretrain.features.plugin import PlugIn
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Schema
from fedretrain.features.steps import Step, check_schema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_FORMAT = 1
_KINDS: dict[str, type[Step]] = {
    cls.kind: cls
    for cls in (
        step_module.Select,
        step_module.MissingIndicator,
        step_module.Impute,
        step_module.Clip,
        step_module.LogSigned,
        step_module.Magnitude,
        step_module.Statistics,
        step_module.Flatten,
        step_module.ChannelFirst,
        step_module.LocalContext,
        Scaler,
        PlugIn,
    )
}


@dataclass(frozen=True)
class Pipeline:
    """Steps from raw rows ``[N, T, C]`` or ``[N, C]`` to model inputs ``[N, *F]``.

    Attributes:
        steps: In order.
        schema: What it reads; ``None`` until it is fitted.
    """

    steps: tuple[Step, ...]
    schema: Schema | None = None

    def fit(
        self, x: NDArray[Any], schema: Schema, *, device: NDArray[np.integer[Any]] | None = None
    ) -> Pipeline:
        """Freeze the numbers of every step on training data.

        Args:
            x: ``[N, T, C]`` or ``[N, C]`` raw training rows (the past only).
            schema: What the rows hold.
            device: ``[N]`` whose row it is; needed to fit what follows a ``local`` scaler. Its own numbers are not
                kept: call `localize` with a device's data for them.

        Raises:
            DataError: If the rows are not what the schema says.
        """
        rows = _rows(x, schema)
        frame, fitted = Frame.of(schema), []
        for step in self.steps:
            frozen = step if step.local else step.fit(rows, frame)
            rows = _apply_local(step, rows, frame, device) if step.local else frozen.apply(rows)
            frame = frozen.frame(frame)
            fitted.append(frozen)
        return Pipeline(tuple(fitted), schema)

    def localize(self, x: NDArray[Any]) -> Pipeline:
        """This fitted pipeline with the local numbers of one device, from its own past rows ``[N, ...]``."""
        if not self.has_local:
            return self
        schema = self._schema()
        rows, frame, fitted = _rows(x, schema), Frame.of(schema), []
        for step in self.steps:
            frozen = step.fit(rows, frame) if step.local else step
            rows, frame = frozen.apply(rows), frozen.frame(frame)
            fitted.append(frozen)
        return Pipeline(tuple(fitted), schema)

    def apply(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Model inputs ``[N, *F]`` of raw rows ``[N, T, C]`` or ``[N, C]``.

        Raises:
            DataError: If the rows have another shape, or a model input is not finite.
        """
        schema = self._schema()
        rows = _rows(x, schema)
        for step in self.steps:
            rows = step.apply(rows)
        if not np.isfinite(rows).all():
            self._refuse_nonfinite(rows)
        return np.ascontiguousarray(rows, dtype=np.float32)

    def __call__(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """The same as `apply`."""
        return self.apply(x)

    def _schema(self) -> Schema:
        if self.schema is None:
            raise DataError("this pipeline is not fitted", fix="call Pipeline.fit with training rows first")
        return self.schema

    def _refuse_nonfinite(self, rows: NDArray[np.float32]) -> None:
        at = np.unravel_index(int(np.argmin(np.isfinite(rows))), rows.shape)
        names = self.feature_names(self._schema())
        axis = at[1] if self._channel_first else at[-1]
        raise DataError(
            f"the model input {names[int(axis)]!r} of row {int(at[0])} is not finite",
            where=f"pipeline step {len(self.steps)} of {len(self.steps)}",
            fix="put an Impute step before the scaler, or mend the sample",
        )

    @property
    def _channel_first(self) -> bool:
        return any(isinstance(step, step_module.ChannelFirst) for step in self.steps)

    @property
    def has_local(self) -> bool:
        """True if a device must `localize` it with its own data before `apply`."""
        return any(step.local for step in self.steps)

    @property
    def pooled_steps(self) -> tuple[str, ...]:
        """The steps whose numbers come from pooled training data."""
        return tuple(f"{i}:{step.kind}" for i, step in enumerate(self.steps) if step.pooled)

    def require_private(self) -> None:
        """Refuse numbers that left the devices without noise.

        Raises:
            PrivacyError: Naming the steps, if differential privacy is on.
        """
        if self.pooled_steps:
            raise PrivacyError(
                f"the pipeline's steps {', '.join(self.pooled_steps)} are fitted on the devices' data without noise",
                where="features",
                fix="use a scaler with how=range, fixed, local or instance, and impute by forward fill or a constant",
            )

    def feature_names(self, schema: Schema) -> tuple[str, ...]:
        """The names along the feature axis of what comes out."""
        frame = Frame.of(schema)
        for step in self.steps:
            frame = step.frame(frame)
        return frame.names

    def output_shape(self, schema: Schema) -> tuple[int, ...]:
        """``F``: the shape of one row of model inputs."""
        blank = np.zeros((1, *schema.row_shape), dtype=np.float32)
        fitted = self.fit(blank, schema, device=np.zeros(1, dtype=np.int64))
        return fitted.localize(blank).apply(blank).shape[1:]

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold."""
        return {
            "format": _FORMAT,
            "schema": None if self.schema is None else self.schema.to_dict(),
            "steps": [
                {"step": s.kind, **{f.name: getattr(s, f.name) for f in fields(s)}} for s in self.steps
            ],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Pipeline:
        """The inverse of `to_dict`.

        Raises:
            DataError: If the content is not a pipeline of this format.
        """
        if content.get("format") != _FORMAT:
            raise DataError(
                f"a pipeline of format {content.get('format')!r} cannot be read", fix=f"expected {_FORMAT}"
            )
        schema = content.get("schema")
        steps = tuple(_step(part) for part in content.get("steps", ()))
        return cls(steps, None if schema is None else Schema.from_dict(schema))

    def to_json(self) -> str:
        """The pipeline as one JSON text; exact for float32 numbers."""
        return json.dumps(self.to_dict(), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Pipeline:
        """The inverse of `to_json`."""
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise DataError(
                f"this pipeline is not JSON: {error}", fix="write it with Pipeline.to_json"
            ) from error

    @property
    def digest(self) -> str:
        """SHA-256 of the JSON form."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def windows(signal: NDArray[Any], length: int, stride: int = 0) -> NDArray[np.float32]:
    """Cut a signal into windows.

    Args:
        signal: ``[L, C]`` samples.
        length: Samples in a window.
        stride: Samples from one window's start to the next's; 0 means `length` (disjoint windows).

    Returns:
        ``[n, length, C]`` float32 copies; n is 0 where the signal is too short.
    """
    stride = stride or length
    if len(signal) < length:
        return np.zeros((0, length, signal.shape[1]), dtype=np.float32)
    view = np.lib.stride_tricks.sliding_window_view(signal, length, axis=0)[::stride]
    return np.ascontiguousarray(np.swapaxes(view, 1, 2), dtype=np.float32)


def _rows(x: NDArray[Any], schema: Schema) -> NDArray[np.float32]:
    check_schema(x, schema)
    return np.asarray(x, dtype=np.float32)


def _apply_local(
    step: Step, rows: NDArray[np.float32], frame: Frame, device: NDArray[np.integer[Any]] | None
) -> NDArray[np.float32]:
    """A local step done to pooled rows, each device with its own numbers."""
    if device is None:
        raise DataError(
            "a pipeline with a local scaler is fitted device by device", fix="give fit(device=...)"
        )
    parts: NDArray[np.float32] | None = None
    for one in np.unique(device):
        mine = device == one
        done = step.fit(rows[mine], frame).apply(rows[mine])
        if parts is None:
            parts = np.empty((len(rows), *done.shape[1:]), dtype=np.float32)
        parts[mine] = done
    return rows if parts is None else parts


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _step(content: Mapping[str, Any]) -> Step:
    """One step from its JSON form."""
    kind = content.get("step")
    if kind not in _KINDS:
        raise DataError(
            f"there is no pipeline step {kind!r}", fix=f"known steps: {', '.join(sorted(_KINDS))}"
        )
    known = {f.name for f in dataclasses.fields(_KINDS[kind])}
    unknown: Sequence[str] = sorted(set(content) - known - {"step"})
    if unknown:
        raise DataError(
            f"the step {kind!r} has no field {unknown[0]!r}", fix=f"known fields: {sorted(known)}"
        )
    return _KINDS[kind](**{name: _tuples(value) for name, value in content.items() if name != "step"})
