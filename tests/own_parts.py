"""What a user brings by import path: models, a data set, an aggregator, a drift, an availability."""

from __future__ import annotations

import numpy as np
from torch import nn

from fedretrain.aggregation.aggregator import FixedDenominatorMean
from tests.world_cases import small_dataset


def model(input_shape, num_outputs, width=8):
    inputs = int(np.prod(input_shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, num_outputs))


def normed_model(input_shape, num_outputs):
    inputs = int(np.prod(input_shape))
    return nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_outputs))


def dropped_model(input_shape, num_outputs):
    inputs = int(np.prod(input_shape))
    return nn.Sequential(nn.Linear(inputs, 8), nn.Dropout(0.5), nn.Linear(8, num_outputs))


class Recurrent(nn.Module):
    """A model with torch's own GRU, which has no batching rule."""

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.rnn = nn.GRU(int(np.prod(input_shape)), 6, batch_first=True)
        self.head = nn.Linear(6, num_outputs)

    def forward(self, x):
        hidden, _ = self.rnn(x.flatten(1)[:, None, :])
        return self.head(hidden[:, -1])


def no_model(input_shape, num_outputs):
    return "not a module"


def load(data_dir=None, *, timeline=None, split="temporal", seed=0, rows=30):
    dataset = small_dataset(num_streams=6, rows=rows)
    dataset.event_at[:] = timeline.place(dataset.stream, dataset.future)
    return dataset


def no_dataset(data_dir=None, *, timeline=None, split="temporal", seed=0):
    return {"x": 1}


def half_mean(cohort):
    """Half of the mean over the cohort."""
    return FixedDenominatorMean(2.0 * cohort)


class Hum:
    """A drift: mains hum on whatever channels it is given."""

    def apply(self, x, rows):
        wave = np.sin(np.arange(x.shape[1], dtype=np.float32))[None, :, None]
        return x + wave * rows.scale.astype(np.float32)


class OfficeHours:
    """An availability: everybody is online from eight to six."""

    slot_s = 3600.0

    def online(self, traits, seed, at):
        hour = at / 3600.0 % 24.0
        return (hour >= 8.0) & (hour < 18.0)
