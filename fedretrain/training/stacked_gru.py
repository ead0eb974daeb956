"""The GRU cell of `layers.LinearGru` over stacked parameters, with backpropagation through time written out.

Rules of this file:
    * All times' input products are one matrix product, forward and backward; so are the recurrent weight's
      gradients: only the hidden state's own product and the gates are done time by time.
    * Gates stand in the order reset, update, new, as in torch.

Source: Cho et al. 2014, https://arxiv.org/abs/1406.1078, in the form of torch.nn.GRU.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from fedretrain.training.stacked import Sink
    from fedretrain.training.task import Tree


@dataclass(frozen=True)
class LinearGru:
    """`layers.LinearGru` on ``[K, B, C, T]``."""

    weight_ih: str
    weight_hh: str
    bias_ih: str
    bias_hh: str
    _: KW_ONLY
    sequence: bool
    keeps_output = True
    taps_first = ()

    @classmethod
    def of(cls, prefix: str, *, sequence: bool) -> LinearGru:
        """The rule of the layer whose parameters' names begin with `prefix`."""
        names = (prefix + own for own in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        return cls(*names, sequence=sequence)

    @property
    def names(self) -> tuple[str, ...]:
        """See `Rule`."""
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh

    def forward(self, params: Tree, x: Tensor, *, scratch: bool) -> tuple[Tensor, Any]:  # noqa: ARG002
        """See `Rule`."""
        clients, samples, channels, time = x.shape
        size = params[self.weight_hh].shape[2]
        inputs = x.permute(0, 3, 1, 2).reshape(clients, time * samples, channels)
        gates = torch.bmm(inputs, params[self.weight_ih].mT).add_(params[self.bias_ih].unsqueeze(1))
        gates = gates.view(clients, time, samples, 3 * size)
        recurrent, bias = params[self.weight_hh].mT, params[self.bias_hh].unsqueeze(1)
        states = x.new_zeros(clients, time + 1, samples, size)
        kept = x.new_empty(
            clients, time, samples, 4 * size
        )  # reset, update, new, and the new gate's recurrent part
        for at in range(time):
            product = torch.bmm(states[:, at], recurrent).add_(bias)
            both = kept[:, at, :, : 2 * size]
            torch.add(gates[:, at, :, : 2 * size], product[..., : 2 * size], out=both).sigmoid_()
            kept[:, at, :, 3 * size :] = product[..., 2 * size :]
            reset, update = both[..., :size], both[..., size:]
            new = torch.addcmul(gates[:, at, :, 2 * size :], reset, product[..., 2 * size :]).tanh_()
            kept[:, at, :, 2 * size : 3 * size] = new
            torch.lerp(new, states[:, at], update, out=states[:, at + 1])
        y = states[:, 1:].permute(0, 2, 3, 1) if self.sequence else states[:, -1]
        return y, (inputs, kept, states, x.shape)

    def backward(self, params: Tree, saved: Any, grad: Tensor, sink: Sink, *, inputs: bool) -> Tensor | None:
        """See `Rule`."""
        rows, kept, states, shape = saved
        clients, samples, channels, time = shape
        size = states.shape[-1]
        d_inputs, d_product = self._through_time(params, kept, states, grad)
        d_inputs, d_product = d_inputs.view(clients, -1, 3 * size), d_product.view(clients, -1, 3 * size)
        before = None
        if inputs:
            before = torch.bmm(d_inputs, params[self.weight_ih])
            before = before.view(clients, time, samples, channels).permute(0, 2, 3, 1)
        if sink.wants(self.weight_ih):
            sink.product(self.weight_ih, d_inputs.mT, rows)
        if sink.wants(self.weight_hh):
            earlier = states[:, :-1].reshape(clients, -1, size)
            sink.product(self.weight_hh, d_product.mT, earlier)
        if sink.wants(self.bias_ih):
            sink.dense(self.bias_ih, d_inputs.sum(1))
        if sink.wants(self.bias_hh):
            sink.dense(self.bias_hh, d_product.sum(1))
        return before

    def _through_time(
        self, params: Tree, kept: Tensor, states: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the input products and of the recurrent products, ``[K, T, B, 3 H]`` each."""
        clients, time, samples, _ = kept.shape
        size, recurrent = states.shape[-1], params[self.weight_hh]
        reset, update, new, recurrent_new = torch.split(kept, size, dim=-1)
        # What does not depend on the gradient that comes back in time is done for all times at once.
        by_new = (1 - update) * (1 - new * new)
        by_update = (states[:, :-1] - new) * update * (1 - update)
        by_reset = recurrent_new * reset * (1 - reset)
        d_inputs = kept.new_empty(clients, time, samples, 3 * size)
        d_product = kept.new_empty(clients, time, samples, 3 * size)
        d_state = torch.zeros_like(states[:, 0]) if self.sequence else grad
        for at in range(time - 1, -1, -1):
            if self.sequence:
                d_state = d_state + grad[..., at]
            d_new = torch.mul(d_state, by_new[:, at], out=d_inputs[:, at, :, 2 * size :])
            torch.mul(d_new, by_reset[:, at], out=d_inputs[:, at, :, :size])
            torch.mul(d_state, by_update[:, at], out=d_inputs[:, at, :, size : 2 * size])
            step = d_product[:, at]
            step[..., : 2 * size] = d_inputs[:, at, :, : 2 * size]
            torch.mul(d_new, reset[:, at], out=step[..., 2 * size :])
            d_state = torch.baddbmm(d_state * update[:, at], step, recurrent)
        return d_inputs, d_product
