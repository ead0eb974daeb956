"""Predictions on a device: a graph without weights, the weights that go into it, and what is decided from its outputs.

Rules of this file:
    * numpy and onnxruntime; one thread, so that the agent leaves the device to its other work.
    * What decides is the package: pipeline, personalization, calibration and decision rule are those that training and
      the simulated fleet use.
    * A model that cannot be loaded or run is a `DataError`: the slot that it came from is at fault, not the agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from fedretrain.artifacts.decision import Answers, class_probabilities, decide
from fedretrain.core.errors import DataError
from fedretrain.core.params import Layout
from fedretrain.core.types import Objective
from fedretrain.training.personal import effective_params, personal_layout
from fedretrain.validation.sanity import SanityOutcome, SanityVectors, check_sanity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.artifacts.manifest import Manifest
    from fedretrain.artifacts.package import Package
    from fedretrain.core.params import Params
    from fedretrain.features.pipeline import Pipeline

_ERRORS: tuple[type[Exception], ...] = (
    *(one for one in vars(_state).values() if isinstance(one, type) and issubclass(one, Exception)),
    ValueError,
    RuntimeError,
)
"""What the runtime raises; its own exceptions have no root in common."""
_SEVERE = 3  # the runtime's log: what is an error is raised as well


class Model:
    """A loaded model.

    Args:
        graph: ONNX bytes without weights.
        params: Every parameter of the graph, by name.

    Raises:
        DataError: If the graph is none, or the parameters are not its own.
    """

    def __init__(self, graph: bytes, params: Params) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _SEVERE
        arrays = [np.ascontiguousarray(leaf, dtype=np.float32) for leaf in params.values()]
        # The session reads these; they live as long as it does.
        self._values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays]
        try:
            options.add_external_initializers(list(params), self._values)
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            (self._input,) = (one.name for one in self._session.get_inputs())
            (self._output,) = (one.name for one in self._session.get_outputs())
        except _ERRORS as error:
            raise DataError(
                f"the model cannot be loaded: {_first_line(error)}",
                where="graph",
                fix="fetch the package again",
            ) from error

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs ``[N, M]`` of model inputs ``[N, *F]``.

        Raises:
            DataError: If the inputs have another shape or type.
        """
        if not len(x):  # onnxruntime's GRU divides by the number of rows, and the process dies of it
            return self.predict(np.zeros((1, *x.shape[1:]), dtype=x.dtype))[:0]
        try:
            outputs: NDArray[np.float32] = self._session.run([self._output], {self._input: x})[0]
        except _ERRORS as error:
            raise DataError(
                f"the model cannot be run on {x.dtype} of the shape {x.shape}: {_first_line(error)}",
                where="model inputs",
                fix="give float32 of the manifest's input shape",
            ) from error
        return outputs


@dataclass(frozen=True, eq=False)
class Predictor:
    """From raw samples to decisions, by one package and what the device itself added to it.

    Attributes:
        manifest: Of the version.
        pipeline: Ready to apply: its local numbers are the device's.
        model: Loaded with the parameters that the device predicts with.
    """

    manifest: Manifest
    pipeline: Pipeline
    model: Model

    @classmethod
    def of(
        cls, package: Package, *, personal: Params | None = None, past: NDArray[Any] | None = None
    ) -> Predictor:
        """The predictor of a package.

        Args:
            package: Verified.
            personal: The device's personal state; None or empty: it serves the global model.
            past: The device's own raw rows ``[N, ...]``, for pipelines with local numbers; None: it has no past.

        Raises:
            DataError: If the personal state is not of this model, or the model cannot be loaded.
        """
        pipeline = package.pipeline
        if pipeline.has_local:
            assert pipeline.schema is not None  # a package's pipeline is fitted
            blank = np.zeros((0, *pipeline.schema.row_shape), dtype=np.float32)
            pipeline = pipeline.localize(blank if past is None else past)
        params = device_params(package.manifest, package.weights, personal or {})
        return cls(package.manifest, pipeline, Model(package.graph, params))

    def outputs(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Calibrated outputs ``[N, M]`` of raw rows ``[N, T, C]`` or ``[N, C]``.

        Raises:
            DataError: If the rows are not what the schema says, or a model input is not finite.
        """
        return self._calibrated(self.pipeline.apply(rows))

    def _calibrated(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.manifest.calibration.apply(self.model.predict(inputs))

    def scores(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """``[N, M]`` what decisions are the largest of, or ``[N, 1]`` values: what sanity vectors hold."""
        manifest = self.manifest
        return manifest.decision.scores(self.outputs(rows), manifest.objective)

    def __call__(self, rows: NDArray[Any]) -> Answers:
        """Label, confidence and entropy of each raw row."""
        return self.answers(self.pipeline.apply(rows))

    def answers(self, inputs: NDArray[np.float32]) -> Answers:
        """Label, confidence and entropy of each row of model inputs ``[N, *F]``, for those who keep the inputs too."""
        return decide(self._calibrated(inputs), self.manifest.decision, self.manifest.objective)

    def judged(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """What validation compares of model inputs ``[N, *F]``: class probabilities ``[N, M]``, or values ``[N, 1]``."""
        outputs = self._calibrated(inputs)
        is_class = self.manifest.objective is Objective.CLASSIFICATION
        return class_probabilities(outputs) if is_class else outputs

    def check(self, vectors: SanityVectors) -> SanityOutcome:
        """What the package's sanity vectors say; ask a predictor without personal state and past."""
        return check_sanity(self.scores, vectors)


def device_params(manifest: Manifest, weights: Params, personal: Params) -> Params:
    """The parameters that a device predicts with.

    Args:
        manifest: Says which method made the personal state.
        weights: The released weights.
        personal: The device's personal state; empty: the global model.

    Raises:
        DataError: If the state has other names or shapes than the method keeps, or is not finite.
    """
    how = manifest.personalization
    if not personal:
        return weights
    if Layout.of(personal) != personal_layout(how.method, weights, how.patterns):
        raise DataError(
            f"the personal state is not one of {how.method} for this model",
            where="personal state",
            fix="re-fit it to this version, or serve the global model",
        )
    for name, leaf in personal.items():
        if not np.isfinite(leaf).all():
            raise DataError("the personal state is not finite", where=name, fix="drop it and re-fit")
    return effective_params(how.method, weights, personal, how.fixed)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
