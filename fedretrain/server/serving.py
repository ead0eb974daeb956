"""``fedretrain server``: open everything, run until a signal, close everything."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import TYPE_CHECKING

from fedretrain.core.log_lines import log_lines
from fedretrain.server.config import read_server
from fedretrain.server.coordinator import Coordinator
from fedretrain.server.database import check_pages, open_database
from fedretrain.server.event_log import EventLog
from fedretrain.server.keys import open_keys, open_stores
from fedretrain.server.steady_clock import SteadyClock

if TYPE_CHECKING:
    from pathlib import Path

SWITCH_S = 0.0005
"""So long a thread that computes keeps the interpreter's lock from one that has something to do. The event loop, and whoever reads rows,
gives it up for a moment thousands of times a second and waits so long to have it back: with Python's 5 ms a turn that read 10,000
devices held heartbeats up for seconds, and was held up by them."""


def run_server(path: Path, *, as_json: bool = False) -> int:
    """Run the coordinator of a file until SIGTERM or Ctrl-C.

    Args:
        path: ``server.toml``.
        as_json: Whether each log line is a JSON document.

    Returns:
        The exit status, 0.

    Raises:
        UserError: If it cannot start.
    """
    sys.setswitchinterval(SWITCH_S)
    log_lines(as_json=as_json)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = read_server(path)
    clock = SteadyClock()
    keys = open_keys(config, clock())
    engine = open_database(config.database_url)
    check_pages(engine)
    coordinator = Coordinator(config, EventLog(engine), keys, open_stores(config), clock)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, coordinator.stop)
        await coordinator.run()

    try:
        asyncio.run(run())
    finally:
        engine.dispose()
    return 0
