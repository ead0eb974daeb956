"""What a pipeline knows of its data between two steps: the channels' names, ranges and rate; no samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fedretrain.features.schema import Schema


@dataclass(frozen=True)
class Frame:
    """The last axis of the data, C entries.

    Attributes:
        names: ``[C]`` names.
        lows: ``[C]`` least possible values; -inf where none is known.
        highs: ``[C]`` greatest possible values.
        rate_hz: Samples per second of the time axis; 0 where there is none.
        length: T, the samples of a window; 0 for tables.
    """

    names: tuple[str, ...]
    lows: NDArray[np.float64]
    highs: NDArray[np.float64]
    rate_hz: float = 0.0
    length: int = 0

    @classmethod
    def of(cls, schema: Schema) -> Frame:
        """The frame of raw data."""
        rates = {channel.rate_hz for channel in schema.channels}
        return cls(
            schema.names, schema.lows, schema.highs, rates.pop() if len(rates) == 1 else 0.0, schema.window
        )

    def indices(self, names: Sequence[str]) -> list[int]:
        """Where the named channels stand.

        Raises:
            ConfigError: If there is no such channel.
        """
        for name in names:
            if name not in self.names:
                raise ConfigError(
                    f"the pipeline asks for the channel {name!r}",
                    fix=f"the channels here are {', '.join(self.names[:12])}",
                )
        return [self.names.index(name) for name in names]

    def take(self, at: Sequence[int]) -> Frame:
        """The frame of some of the channels."""
        names = tuple(self.names[i] for i in at)
        return Frame(names, self.lows[list(at)], self.highs[list(at)], self.rate_hz, self.length)

    def plus(self, names: Sequence[str], low: float, high: float) -> Frame:
        """The frame with more channels at the end, all of one range."""
        more = np.full(len(names), low), np.full(len(names), high)
        lows, highs = np.concatenate([self.lows, more[0]]), np.concatenate([self.highs, more[1]])
        return Frame((*self.names, *names), lows, highs, self.rate_hz, self.length)

    def unbounded(self, names: Sequence[str] | None = None, *, table: bool = False) -> Frame:
        """The frame of derived values whose ranges nobody declared."""
        names = self.names if names is None else tuple(names)
        size = len(names)
        rate, length = (0.0, 0) if table else (self.rate_hz, self.length)
        return Frame(tuple(names), np.full(size, -np.inf), np.full(size, np.inf), rate, length)
