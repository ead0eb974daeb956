"""Sections of the schema that say what is trained: data set, table, model. See `sim.schema`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fedretrain.core import checks
from fedretrain.core.clock import DAY_S
from sim.datasets.base import Split


@dataclass(frozen=True)
class DatasetConfig:
    """Where raw samples come from.

    Attributes:
        name: A shipped data set, ``table``, or ``package.module:function`` of the user's own.
        split: `temporal` (train on the past, score the future) or, if asked for, `random`.
        balance_classes: Weigh each class's losses by the inverse of its share of all training rows (not with DP).
        options: Keyword arguments of the data set's loader, for example ``{past_fraction: 0.5}``.
        history_s: How long before the campaign the first samples were taken, where the data have no clock.
        future_s: How long after it scored samples are taken, where the data have no clock.
        live_fraction: Share of the training samples that are taken during the campaign, where the data have no clock.
    """

    name: str = "watch"
    split: Split = Split.TEMPORAL
    balance_classes: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    history_s: float = 14 * DAY_S
    future_s: float = 7 * DAY_S
    live_fraction: float = 0.25


class ModelKind(StrEnum):
    """The shipped models, or a user's."""

    MLP = "mlp"
    CNN1D = "cnn1d"
    GRU = "gru"
    CUSTOM = "custom"


@dataclass(frozen=True)
class MlpConfig:
    """A multi-layer perceptron.

    Attributes:
        hidden: Width of each hidden layer.
    """

    hidden: tuple[int, ...] = (64,)


@dataclass(frozen=True)
class Cnn1dConfig:
    """A 1D-CNN with GroupNorm over signals.

    Attributes:
        channels: Width of each convolution.
        kernel_size: Samples that a filter sees.
        stride: Of every convolution.
        groups: Of GroupNorm; must divide every width.
    """

    channels: tuple[int, ...] = (32, 64)
    kernel_size: int = 5
    stride: int = 1
    groups: int = 8


@dataclass(frozen=True)
class GruConfig:
    """A recurrent network over signals.

    Attributes:
        hidden: Width of the hidden state.
        num_layers: Recurrent layers.
    """

    hidden: int = 32
    num_layers: int = 1


@dataclass(frozen=True)
class CustomConfig:
    """A user's own, by import path.

    Attributes:
        path: ``package.module:factory``.
        options: Its keyword arguments.
    """

    path: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """The model that the fleet trains: a shipped one, or `custom`; the section of its kind says more."""

    kind: ModelKind = ModelKind.MLP
    mlp: MlpConfig = field(default_factory=MlpConfig)
    cnn1d: Cnn1dConfig = field(default_factory=Cnn1dConfig)
    gru: GruConfig = field(default_factory=GruConfig)
    custom: CustomConfig = field(default_factory=CustomConfig)

    def __post_init__(self) -> None:
        for widths in (self.mlp.hidden, self.cnn1d.channels):
            checks.require(all(width >= 1 for width in widths), "a width is below 1", key="model")
        custom = self.kind is ModelKind.CUSTOM
        checks.require(
            custom == bool(self.custom.path), "a path goes with kind=custom", key="model.custom.path"
        )
