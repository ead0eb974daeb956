"""What every data set promises, ours and a user's: call `check_dataset` with a function that loads it.

def test_mine():
    check_dataset(lambda **options: my_package.load(**options))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.features.pipeline import Pipeline
from sim.datasets.base import SensorDataset, Timeline

if TYPE_CHECKING:
    from collections.abc import Callable


def check_dataset(load: Callable[..., SensorDataset]) -> None:
    """Every promise of `SensorDataset` and of the loaders, in order."""
    data = load()
    assert isinstance(data, SensorDataset)
    _repeats(data, load())
    _respects_time(data, load(timeline=Timeline(campaign_s=1000.0)))
    _names(data)
    _pipeline(data)


def _repeats(data: SensorDataset, again: SensorDataset) -> None:
    """Loading twice gives the same rows in the same order."""
    for name in ("x", "y", "stream", "event_at", "future"):
        np.testing.assert_array_equal(getattr(data, name), getattr(again, name))
    assert data.digest == again.digest
    assert data.schema.digest == again.schema.digest


def _respects_time(data: SensorDataset, short: SensorDataset) -> None:
    """Scored rows lie after the campaign and after every training row of their device."""
    assert data.event_at[data.future].min() >= Timeline().campaign_s
    assert short.event_at[short.future].min() >= 1000.0
    for stream in range(min(data.num_streams, 50)):
        past, future = (data.event_at[data.rows_of(stream, future=side)] for side in (False, True))
        if len(past) and len(future):
            assert past.max() <= future.min()
        assert not len(past) or past.max() < Timeline().campaign_s


def _names(data: SensorDataset) -> None:
    """A digest, caveats and unique device names, for the reports."""
    assert len(set(data.stream_names)) == data.num_streams
    assert data.digest
    assert data.caveats
    assert all(caveat and "\n" not in caveat for caveat in data.caveats)


def _pipeline(data: SensorDataset) -> None:
    """The default pipeline runs on every row, survives JSON, and gives inputs a model can learn from."""
    past = ~data.future
    fitted = data.pipeline.fit(data.x[past], data.schema, device=data.stream[past])
    again = Pipeline.from_json(fitted.to_json())
    inputs = []
    for stream in range(min(data.num_streams, 20)):
        own = fitted.localize(data.x[data.rows_of(stream, future=False)])
        rows = data.x[data.rows_of(stream)]
        inputs.append(own.apply(rows))
        if stream == 0:
            np.testing.assert_array_equal(
                again.localize(data.x[data.rows_of(stream, future=False)]).apply(rows), inputs[0]
            )
    together = np.concatenate(inputs)
    assert together.shape[1:] == data.pipeline.output_shape(data.schema)
    assert 0.05 < float(together.std()) < 5.0
    assert float(np.abs(together).max()) <= 100.0
