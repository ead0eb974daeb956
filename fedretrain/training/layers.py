"""Layers of our own, each a plain leaf module that a batched executor can serve.

Rules of this file:
    * Signals are ``[N, C, T]``: channels, then time.
    * Linear operations and element-wise functions only: every layer has a batching rule under torch.func.vmap and
      per-example gradients under Opacus.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MeanOverTime(nn.Module):
    """The mean over the last axis: ``[N, C, T] -> [N, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean of each channel."""
        return x.mean(dim=-1)


class LinearGru(nn.Module):
    """A gated recurrent unit written from linear operations; equals a one-layer `nn.GRU`.

    Names, shapes and order of gates (reset, update, new) of the parameters are `nn.GRUCell`'s.

    Args:
        input_size: C.
        hidden_size: H.
        sequence: True for every hidden state ``[N, H, T]``, False for the last one ``[N, H]``.

    Source: Cho et al. 2014, https://arxiv.org/abs/1406.1078, in the form of torch.nn.GRU.
    """

    def __init__(self, input_size: int, hidden_size: int, *, sequence: bool = False) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.sequence = input_size, hidden_size, sequence
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(3 * hidden_size))
        self.bias_hh = nn.Parameter(torch.empty(3 * hidden_size))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states of signals ``[N, C, T]``."""
        inputs = nn.functional.linear(x.transpose(1, 2), self.weight_ih, self.bias_ih)  # all times at once
        hidden = x.new_zeros(x.shape[0], self.hidden_size)
        states: list[Tensor] = []
        for at in inputs.unbind(1):
            hidden = self._cell(at, hidden)
            if self.sequence:
                states.append(hidden)
        return torch.stack(states, dim=-1) if self.sequence else hidden

    def _cell(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        recurrent = nn.functional.linear(hidden, self.weight_hh, self.bias_hh)
        reset_in, update_in, new_in = inputs.chunk(3, dim=-1)
        reset_h, update_h, new_h = recurrent.chunk(3, dim=-1)
        reset, update = torch.sigmoid(reset_in + reset_h), torch.sigmoid(update_in + update_h)
        new = torch.tanh(new_in + reset * new_h)
        return new + update * (hidden - new)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.input_size}, {self.hidden_size}, sequence={self.sequence}"
