"""From a configuration to a `LocalTask`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.core.types import MethodKind
from fedretrain.training.methods.apfl import Apfl
from fedretrain.training.methods.ditto import Ditto
from fedretrain.training.methods.fedavg import FedAvg
from fedretrain.training.methods.fedper import FedPer
from fedretrain.training.methods.fedrep import FedRep
from fedretrain.training.methods.finetune import Finetune

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.training.config import LocalTraining, MethodConfig
    from fedretrain.training.models import ModelBundle
    from fedretrain.training.task import LocalTask

_METHODS: dict[MethodKind, Callable[[ModelBundle, LocalTraining, MethodConfig], LocalTask]] = {
    MethodKind.FEDAVG: FedAvg,
    MethodKind.FINETUNE: Finetune,
    MethodKind.FEDPER: FedPer,
    MethodKind.FEDREP: FedRep,
    MethodKind.APFL: Apfl,
    MethodKind.DITTO: Ditto,
}


def make_task(method: MethodConfig, local: LocalTraining, model: ModelBundle) -> LocalTask:
    """The task of a method.

    Args:
        method: Which method, with its hyperparameters.
        local: How clients train.
        model: The model and its first parameters.

    Raises:
        ConfigError: If the personal patterns do not fit the model.
        PrivacyError: If the combination would falsify example-level DP.
    """
    return _METHODS[method.kind](model, local, method)
