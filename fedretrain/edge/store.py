"""A logical device's database with everything that lies in it, opened together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from fedretrain.edge import examples as examples_module
from fedretrain.edge import lineage as lineage_module
from fedretrain.edge.clock import DeviceClock
from fedretrain.edge.database import AgentDatabase
from fedretrain.edge.example_reads import Reads
from fedretrain.edge.examples import Examples, Room, Stream
from fedretrain.edge.lineage import Lineage
from fedretrain.edge.outbox import Outbox
from fedretrain.edge.start import machine_start

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fedretrain.edge.config import OutboxConfig

SHADOW_MARK = "/shadow"
"""Behind a model's name: the stream of what a candidate would have said."""


@dataclass(frozen=True)
class Store:
    """What a device keeps in its database. Hold `database.mutex` for everything but the outbox.

    Attributes:
        database: The file.
        clock: Of this start.
        outbox: What is to be sent.
        room: The bounds of a buffer.
        served: Predictions that were served, and their labels.
        shadow: Predictions of the candidate on the same samples.
        lineage: What examples were used for.
        stream: The device and its model.
    """

    database: AgentDatabase
    clock: DeviceClock
    outbox: Outbox
    room: Room
    served: Examples
    shadow: Examples
    lineage: Lineage
    stream: Stream

    @classmethod
    def open(
        cls,
        folder: Path,
        stream: Stream,
        bounds: OutboxConfig,
        *,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        suspect: str = "",
        room: Room | None = None,
    ) -> Store:
        """Open it, or begin a new one.

        Args:
            folder: The device's.
            stream: The device and its model.
            bounds: Of the outbox.
            monotonic: Seconds that never jump.
            wall: Seconds since the epoch, as the device has them.
            suspect: Why the file is to be set aside.
            room: Bounds of the buffer.

        Raises:
            DataError: If the file is another agent's or another program's, or the disk cannot be read.
        """
        database = AgentDatabase(folder / "agent.db", now_at=wall(), suspect=suspect, machine=machine_start())
        try:
            clock = DeviceClock(database.identity.boot, database.floor_at, monotonic, wall)
            outbox = Outbox(
                database, max_bytes=bounds.max_bytes, max_age_s=bounds.max_age_s, opened=clock.instant()
            )
            with database.mutex:
                examples_module.tables(database.connection)
                lineage_module.tables(database.connection)
        except BaseException:
            database.close()
            raise
        room = room or Room()
        return cls(
            database,
            clock,
            outbox,
            room,
            Examples(database.connection, stream, room),
            Examples(database.connection, _shadow(stream), room),
            Lineage(database.connection, stream),
            stream,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def shadow_stream(self) -> Stream:
        """Of the candidate's predictions."""
        return _shadow(self.stream)

    def streams(self) -> tuple[tuple[Examples, bool], ...]:
        """The buffers, and whether each is of what was only scored."""
        return (self.served, False), (self.shadow, True)

    def reads(self) -> tuple[Reads, Reads]:
        """Looks at both buffers: served, shadow."""
        connection = self.database.connection
        return Reads(connection, self.stream), Reads(connection, self.shadow_stream)

    def is_half_full(self) -> bool:
        """Whether the buffer of predictions is so full that they must be counted by the best guess of the time."""
        return 2 * self.reads()[0].size() > self.room.rows

    def close(self) -> None:
        """Write what waits, and let go of the file."""
        self.outbox.flush(self.clock.instant())
        self.database.close()


def _shadow(stream: Stream) -> Stream:
    return Stream(stream.device, stream.model + SHADOW_MARK)
