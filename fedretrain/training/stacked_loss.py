"""Losses of stacked clients and their gradients, written out; equal to autograd of `losses` to rounding.

Rules of this file:
    * The mean is over a client's samples in the batch, never over its padding, and never across clients.
    * Few classes are held class by class (``[C, K * B]``): torch's softmax over a last axis of six numbers takes ten
      times as long as one over a first axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fedretrain.training.config import LossKind

if TYPE_CHECKING:
    from torch import Tensor

    from fedretrain.training.losses import Loss

_FEW_CLASSES = 64


def loss_and_grad(loss: Loss, outputs: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Each client's mean loss, and the gradient of their sum with respect to the outputs.

    Args:
        loss: Which loss.
        outputs: ``[K, B, C]`` logits, or ``[K, B, 1]`` values.
        y: ``[K, B]`` classes or targets.
        share: ``[K, B]`` (or a scalar) what each sample counts in its client's mean; 0 for padding.

    Returns:
        ``[K]`` and the shape of `outputs`.
    """
    if loss.kind is LossKind.CROSS_ENTROPY:
        return _cross_entropy(loss, outputs, y, share)
    error = outputs.squeeze(-1) - y
    if loss.kind is LossKind.MSE:
        return (error.square() * share).sum(1), (2 * error * share).unsqueeze(-1)
    near = error.clamp(-loss.huber_delta, loss.huber_delta)
    return (near * (error - 0.5 * near) * share).sum(1), (near * share).unsqueeze(-1)


def _cross_entropy(loss: Loss, outputs: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    num_clients, num_samples, num_classes = outputs.shape
    if loss.class_weights is not None:
        share = loss.weights_of(y, outputs) * share
    if num_classes > _FEW_CLASSES:
        logs = torch.log_softmax(outputs, dim=-1)
        index = y.unsqueeze(-1)
        picked = logs.gather(-1, index)
        grad = logs.exp_().scatter_add_(-1, index, torch.full_like(picked, -1.0))
        return (-picked.squeeze(-1) * share).sum(1), grad.mul_(share.unsqueeze(-1) if share.dim() else share)
    logs = torch.log_softmax(outputs.permute(2, 0, 1).reshape(num_classes, -1), dim=0)
    index = y.reshape(1, -1)
    picked = logs.gather(0, index)
    grad = logs.exp_().scatter_add_(0, index, picked.new_full((), -1.0).expand_as(index))
    mean = -(picked.view(num_clients, num_samples) * share).sum(1)
    grad.mul_(share.reshape(-1) if share.dim() else share)
    return mean, grad.view(num_classes, num_clients, num_samples).permute(1, 2, 0).contiguous()
