"""The plain torch loop that the peers run on a device, and the models of the jobs.

Rules of this file:
    * What anybody would write: `nn.Module`, `torch.optim.SGD`, `cross_entropy`, `backward`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from fedretrain.training import models

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks.client_update.job import Job, Problem


def build(job: Job) -> nn.Module:
    """The job's model; its weights are set later."""
    return getattr(models, job.model)(job.input_shape, job.num_outputs, 0, **job.model_options).module


def train_client(model: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64], job: Job) -> float:
    """One client's local training: a pass over its samples in batches; the mean loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=job.lr)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    total, steps = 0.0, 0
    for start in range(0, len(targets), job.batch_size):
        optimizer.zero_grad()
        rows = slice(start, start + job.batch_size)
        loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total, steps = total + loss.item(), steps + 1
    return total / max(steps, 1)


def accuracy(model: nn.Module, problem: Problem) -> float | None:
    """The share of test samples that the model names rightly, or None without test samples."""
    if len(problem.test_y) == 0:
        return None
    with torch.no_grad():
        named = model(torch.from_numpy(problem.test_x)).argmax(-1)
    return float((named == torch.from_numpy(problem.test_y)).float().mean())
