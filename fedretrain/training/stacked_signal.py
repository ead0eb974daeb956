"""Hand-batched layers for signals: convolution and normalisation; see `stacked` for the rules and the letters.

Rules of this file:
    * Signals are ``[K, B, C, T]``, held in memory as ``[K, B, T, C]``: a window of a convolution is then one run of
      ``W * C`` numbers (W: kernel size), whatever the stride, so unfolding copies whole runs and the products are
      large matrix products at the processor's full speed. A grouped convolution (groups = K) took 1.5 to 4 times as
      long, forward and backward.
    * Beyond `_LARGE_FLOP` a client's convolution is so much arithmetic that batching gains nothing: torch's own kernel
      (139 GFLOP/s against 85 for unfolded products at 26 MFLOP) runs client by client, on ``[K, B, C, T]``.
    * Normalisation takes torch's own kernels without their affine part, which differs from client to client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fedretrain.training.stacked import Sink
    from fedretrain.training.task import Tree


_LARGE_FLOP = 12e6  # of one client's forward pass of one layer and step


@dataclass(frozen=True)
class Conv1d:
    """`nn.Conv1d` with zero padding, one group and no dilation, by unfolding."""

    weight: str
    bias: str | None
    stride: int
    padding: int
    keeps_output = False

    @property
    def taps_first(self) -> tuple[str, ...]:
        """See `Rule`: held so, a weight needs no copy at any step."""
        return (self.weight,)

    @property
    def names(self) -> tuple[str, ...]:
        """See `Rule`."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def forward(self, params: Tree, x: Tensor, *, scratch: bool) -> tuple[Tensor, Any]:  # noqa: ARG002
        """See `Rule`."""
        if self._is_large(params, x):
            return self._forward_one_by_one(params, x)
        weight = _taps_first(params[self.weight])
        columns = self._unfold(x, params[self.weight].shape[-1])  # [K, B * T', W * C]
        y = torch.bmm(columns, weight.mT)
        if self.bias is not None:
            y.add_(params[self.bias].unsqueeze(1))
        num_clients, num_samples = x.shape[:2]
        # Not -1: the number of steps is ambiguous for a client without samples.
        num_steps = (x.shape[3] + 2 * self.padding - params[self.weight].shape[-1]) // self.stride + 1
        return y.view(num_clients, num_samples, num_steps, weight.shape[1]).transpose(2, 3), (
            columns,
            x.shape,
        )

    def backward(self, params: Tree, saved: Any, grad: Tensor, sink: Sink, *, inputs: bool) -> Tensor | None:
        """See `Rule`."""
        if isinstance(saved, Tensor):
            return self._backward_one_by_one(params, saved, grad, sink, inputs=inputs)
        (columns, shape), weight = saved, params[self.weight]
        flat = grad.transpose(2, 3).reshape(len(columns), columns.shape[1], -1)  # [K, B * T', H]
        before = self._fold(torch.bmm(flat, _taps_first(weight)), shape, weight.shape[-1]) if inputs else None
        if sink.wants(self.weight):
            sink.product(self.weight, flat.mT, columns, taps_first=True)
        if self.bias is not None and sink.wants(self.bias):
            sink.dense(self.bias, flat.sum(1))
        return before

    def _is_large(self, params: Tree, x: Tensor) -> bool:
        times = (x.shape[3] + 2 * self.padding) // self.stride
        return 2 * x.shape[1] * times * params[self.weight][0].numel() > _LARGE_FLOP

    def _forward_one_by_one(self, params: Tree, x: Tensor) -> tuple[Tensor, Any]:
        x = x.contiguous()
        biases = [None] * len(x) if self.bias is None else params[self.bias]
        found = [
            torch.conv1d(one, weight, bias, self.stride, self.padding)
            for one, weight, bias in zip(x, params[self.weight], biases, strict=True)
        ]
        return torch.stack(found), x

    def _backward_one_by_one(
        self, params: Tree, x: Tensor, grad: Tensor, sink: Sink, *, inputs: bool
    ) -> Tensor | None:
        wanted = [inputs, sink.wants(self.weight), self.bias is not None and sink.wants(self.bias)]
        found = [
            torch.ops.aten.convolution_backward(
                back,
                one,
                weight,
                [weight.shape[0]],
                [self.stride],
                [self.padding],
                [1],
                False,
                [0],
                1,
                wanted,
            )
            for back, one, weight in zip(grad.contiguous(), x, params[self.weight], strict=True)
        ]
        before, by_weight, by_bias = zip(*found, strict=True)
        if wanted[1]:
            sink.dense(self.weight, torch.stack(by_weight))
        if self.bias is not None and wanted[2]:
            sink.dense(self.bias, torch.stack(by_bias))
        return torch.stack(before) if inputs else None

    def _unfold(self, x: Tensor, width: int) -> Tensor:
        clients, samples, channels, time = x.shape
        padded = x.transpose(2, 3)
        if self.padding:
            padded = x.new_zeros(clients, samples, time + 2 * self.padding, channels)
            padded[:, :, self.padding : self.padding + time] = x.transpose(2, 3)
        padded = padded.contiguous()
        steps = (padded.shape[2] - width) // self.stride + 1
        per_client, per_sample, per_time, _ = padded.stride()
        windows = padded.as_strided(
            (clients, samples, steps, width * channels), (per_client, per_sample, self.stride * per_time, 1)
        )
        return windows.reshape(clients, samples * steps, width * channels)

    def _fold(self, columns: Tensor, shape: torch.Size, width: int) -> Tensor:
        """Add each window's gradient to the samples that it saw."""
        clients, samples, channels, time = shape
        windows = columns.view(clients, samples, -1, width, channels)
        reach = self.stride * (windows.shape[2] - 1) + 1
        total = columns.new_zeros(clients, samples, time + 2 * self.padding, channels)
        for tap in range(width):
            total[:, :, tap : tap + reach : self.stride] += windows[:, :, :, tap]
        return total[:, :, self.padding : self.padding + time].transpose(2, 3)


def _taps_first(weight: Tensor) -> Tensor:
    """``[K, H, C, W]`` as ``[K, H, W * C]``, in the order of an unfolded window."""
    return weight.transpose(2, 3).reshape(*weight.shape[:2], -1)


@dataclass(frozen=True)
class GroupNorm:
    """`nn.GroupNorm` over ``[C]`` or ``[C, T]``."""

    weight: str | None
    bias: str | None
    groups: int
    eps: float
    taps_first = ()

    @property
    def keeps_output(self) -> bool:
        """See `Rule`: without an affine part the output is the saved one."""
        return not self.names

    @property
    def names(self) -> tuple[str, ...]:
        """See `Rule`."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    def forward(self, params: Tree, x: Tensor, *, scratch: bool) -> tuple[Tensor, Any]:  # noqa: ARG002
        """See `Rule`."""
        image = _as_image(x)
        size = (image.shape[0], image.shape[1], image.shape[2])
        normal, mean, rstd = torch.native_group_norm(image, None, None, *size, self.groups, self.eps)
        normal = normal.squeeze(-1).view(x.shape) if x.dim() == 4 else normal.view(x.shape)
        saved = (image, normal, mean, rstd)
        return _affine(normal, self._lead(params, self.weight, x), self._lead(params, self.bias, x)), saved

    def backward(self, params: Tree, saved: Any, grad: Tensor, sink: Sink, *, inputs: bool) -> Tensor | None:
        """See `Rule`."""
        image, normal, mean, rstd = saved
        weight, before = self._lead(params, self.weight, grad), None
        if inputs:
            scaled = _as_image(grad if weight is None else grad * weight)
            size = (image.shape[0], image.shape[1], image.shape[2])
            before = torch.ops.aten.native_group_norm_backward(
                scaled, image, mean, rstd, None, *size, self.groups, [True, False, False]
            )[0]
            before = before.squeeze(-1).view(grad.shape) if grad.dim() == 4 else before.view(grad.shape)
        axes = (1,) if grad.dim() == 3 else (1, 3)
        if self.weight is not None and sink.wants(self.weight):
            sink.dense(self.weight, (grad * normal).sum(axes))
        if self.bias is not None and sink.wants(self.bias):
            sink.dense(self.bias, grad.sum(axes))
        return before

    def _lead(self, params: Tree, name: str | None, x: Tensor) -> Tensor | None:
        """A parameter ``[K, C]`` as ``[K, 1, C, 1]`` (without the last axis where x has no time)."""
        if name is None:
            return None
        leaf = params[name].unsqueeze(1)
        return leaf.unsqueeze(-1) if x.dim() == 4 else leaf


def _as_image(x: Tensor) -> Tensor:
    """``[K, B, C, T]`` as ``[K * B, C, T, 1]`` in the memory order that it has, for torch's kernels."""
    if x.dim() == 3:
        return x.reshape(-1, x.shape[2], 1, 1)
    if x.is_contiguous():
        return x.view(-1, *x.shape[2:], 1)
    rows = x.transpose(2, 3).contiguous()  # [K, B, T, C], no copy if it is held so
    return rows.view(-1, rows.shape[2], 1, rows.shape[3]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class LayerNorm:
    """`nn.LayerNorm` over the last axes."""

    weight: str | None
    bias: str | None
    shape: tuple[int, ...]
    eps: float
    taps_first = ()

    @property
    def keeps_output(self) -> bool:
        """See `Rule`: without an affine part the output is the saved one."""
        return not self.names

    @property
    def names(self) -> tuple[str, ...]:
        """See `Rule`."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    def forward(self, params: Tree, x: Tensor, *, scratch: bool) -> tuple[Tensor, Any]:  # noqa: ARG002
        """See `Rule`."""
        x = x.contiguous()
        normal, mean, rstd = torch.native_layer_norm(x, self.shape, None, None, self.eps)
        saved = (x, normal, mean, rstd)
        return _affine(normal, self._lead(params, self.weight, x), self._lead(params, self.bias, x)), saved

    def backward(self, params: Tree, saved: Any, grad: Tensor, sink: Sink, *, inputs: bool) -> Tensor | None:
        """See `Rule`."""
        x, normal, mean, rstd = saved
        weight, before = self._lead(params, self.weight, grad), None
        if inputs:
            scaled = (grad if weight is None else grad * weight).contiguous()
            before = torch.ops.aten.native_layer_norm_backward(
                scaled, x, self.shape, mean, rstd, None, None, [True, False, False]
            )[0]
        axes = tuple(range(1, grad.dim() - len(self.shape)))
        if self.weight is not None and sink.wants(self.weight):
            sink.dense(self.weight, (grad * normal).sum(axes))
        if self.bias is not None and sink.wants(self.bias):
            sink.dense(self.bias, grad.sum(axes))
        return before

    def _lead(self, params: Tree, name: str | None, x: Tensor) -> Tensor | None:
        if name is None:
            return None
        leaf = params[name]
        return leaf.view(len(leaf), *(1,) * (x.dim() - leaf.dim()), *leaf.shape[1:])


def _affine(normal: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is None:
        return normal if bias is None else normal + bias
    return normal * weight if bias is None else torch.addcmul(bias, normal, weight)
