"""Models, clients and configurations that the training tests share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedretrain.core.ids import ClientId
from fedretrain.core.types import ClientData
from fedretrain.training.config import LossKind
from fedretrain.training.executor import ClientWork
from fedretrain.training.models import ModelBundle, cnn1d, gru, mlp

NUM_CLASSES = 4


class BatchNormNet(nn.Module):
    """A user's model with float and integer buffers."""

    def __init__(self, input_shape: tuple[int, ...] = (6,), num_outputs: int = NUM_CLASSES) -> None:
        super().__init__()
        self.body = nn.Linear(input_shape[0], 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.body(x))))


@dataclass(frozen=True)
class ModelCase:
    """A model and the shape of its samples."""

    model: ModelBundle
    shape: tuple[int, ...]


def model_case(name: str, num_outputs: int = NUM_CLASSES) -> ModelCase:
    if name == "mlp":
        return ModelCase(mlp((7,), num_outputs, 3, hidden=(9, 5)), (7,))
    if name == "cnn1d":
        return ModelCase(
            cnn1d((3, 16), num_outputs, 3, channels=(4, 8), kernel_size=3, groups=2, stride=2), (3, 16)
        )
    if name == "gru":
        return ModelCase(gru((3, 6), num_outputs, 3, hidden=5, num_layers=2), (3, 6))
    assert name == "batchnorm"
    torch.manual_seed(5)
    return ModelCase(ModelBundle.of(BatchNormNet((6,), num_outputs)), (6,))


def clients(
    shape: tuple[int, ...],
    sizes: tuple[int, ...],
    *,
    loss: LossKind = LossKind.CROSS_ENTROPY,
    num_classes: int = NUM_CLASSES,
) -> list[ClientWork]:
    """Clients whose labels depend on their samples, each in its own way."""
    work = []
    for number, size in enumerate(sizes):
        rng = np.random.default_rng(100 + number)
        x = rng.normal(size=(size, *shape)).astype(np.float32)
        signal = x.reshape(size, int(np.prod(shape))) @ rng.normal(size=(int(np.prod(shape)), num_classes))
        y = (
            signal.argmax(axis=1)
            if loss is LossKind.CROSS_ENTROPY
            else np.tanh(signal[:, 0]).astype(np.float32)
        )
        work.append(ClientWork(ClientId(number + 10), ClientData(x, y), None, 2**63 + 977 * number))
    return work
