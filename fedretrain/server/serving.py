"""``fedretrain server``: open everything, run until a signal, close everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.core.child import Child, Command, leashed
from fedretrain.core.ending import run_until_signals
from fedretrain.core.log_lines import log_lines
from fedretrain.server.addresses import check_free
from fedretrain.server.config import read_server
from fedretrain.server.coordinator import Coordinator
from fedretrain.server.database import check_pages, open_database
from fedretrain.server.event_log import EventLog
from fedretrain.server.gateway_process import JSON
from fedretrain.server.keys import open_keys, open_stores
from fedretrain.server.steady_clock import SteadyClock

if TYPE_CHECKING:
    from pathlib import Path


def run_server(path: Path, *, as_json: bool = False) -> int:
    """Run the coordinator of a file, and its gateways, until SIGTERM or Ctrl-C.

    Args:
        path: ``server.toml``.
        as_json: Whether each log line is a JSON document.

    Returns:
        The exit status: 0, or that of a gateway that cannot run and has said why.

    Raises:
        UserError: If it cannot start.
    """
    log_lines(as_json=as_json)
    config = read_server(path)
    for address in (config.listen.control, config.listen.enrol):
        check_free(address)
    clock = SteadyClock()
    keys = open_keys(config, clock())
    engine = open_database(config.database_url)
    try:
        check_pages(engine)
        words = leashed("-m", "fedretrain.server.gateway_process", str(path), *([JSON] if as_json else []))
        gateways = [Child(Command(words)) for _ in range(config.listen.gateways)]
        coordinator = Coordinator(config, EventLog(engine), keys, open_stores(config), clock, gateways)
        return run_until_signals(coordinator.run, coordinator.stop)
    finally:
        engine.dispose()
