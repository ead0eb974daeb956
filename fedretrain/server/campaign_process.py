"""A campaign's processes, watched: Flower's run and the server app that carries it out, again and again until it ends.

Rules of this file:
    * Each server app acts under a lease of its own: a new one is acquired for each, so whatever an older process still
      believes, it commits nothing.
    * When the SuperLink was started anew its runs are lost: the app is ended, and a new run goes on from the last
      committed round.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from fedretrain.core.child import Backoff, Child, Command
from fedretrain.core.errors import FedretrainError
from fedretrain.server.campaign import read_campaign
from fedretrain.server.superlink import Bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fedretrain.artifacts.at_rest import StorePlace
    from fedretrain.server.event_log import EventLog, Fence
    from fedretrain.server.superlink import SuperLink

_TTL_S = 30.0


@dataclass(frozen=True)
class CampaignFiles:
    """Where a server app finds what it needs.

    Attributes:
        database: URL of the event log.
        store: Where campaigns' states are.
        folder: For the app's log.
        nodes: File of the devices of each public key; None in development.
        witness: File of the ledger's witness; None for none.
    """

    database: str
    store: StorePlace
    folder: Path
    nodes: Path | None = None
    witness: Path | None = None


class CampaignProcess:
    """Sees to it that a campaign goes on.

    Args:
        campaign: Which.
        log: The event log.
        superlink: Where it runs; `ensure` of it is called here.
        files: Where the app finds what it needs.
        clock: Seconds since the epoch, for leases.
    """

    def __init__(
        self,
        campaign: str,
        log: EventLog,
        superlink: SuperLink,
        files: CampaignFiles,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.campaign = campaign
        self._log, self._superlink, self._files, self._clock = log, superlink, files, clock
        bundle = read_campaign(log, campaign).definition.bundle
        self._bundle = Bundle.of(files.store.open().get(bundle))
        self._fence: Fence | None = None
        self._holder = ""
        self._run = self._superlink_starts = 0
        self._backoff = Backoff()
        self.app: Child | None = None

    @property
    def ended(self) -> bool:
        """Whether the campaign is over."""
        return bool(read_campaign(self._log, self.campaign).end)

    def ensure(self, now: float) -> bool:
        """Start what does not run and is due; whether the campaign goes on. Call it every second or so.

        Args:
            now: Monotonic instant, seconds.
        """
        if self.ended:
            self.stop()
            return False
        self._superlink.ensure(now)
        self._prolong()
        if self.app is not None and self._superlink.child.num_starts != self._superlink_starts:
            self._end_app()  # its run was lost
        if self.app is not None and not self.app.is_alive:
            self._end_app()
            self._backoff.failed(now)
        if self.app is None and self._backoff.is_due(now) and self._superlink.is_ready():
            self._start_app(now)
        return True

    def stop(self) -> None:
        """End the app and give the lease back. May be called twice."""
        self._end_app()

    @property
    def _lease(self) -> str:
        return f"campaign/{self.campaign}"

    def _prolong(self) -> None:
        if self._fence is None:
            return
        kept = self._log.acquire(self._lease, self._holder, now=self._clock(), ttl_s=_TTL_S)
        if kept != self._fence:
            self._end_app()

    def _end_app(self) -> None:
        if self.app is not None:
            self.app.stop()
            self.app = None
            # Or its nodes would train for nobody. It may be over, or lost with the SuperLink.
            with suppress(httpx.HTTPError):
                self._superlink.stop_run(self._run)
        if self._fence is not None:
            self._log.release(self._fence)
            self._fence = None

    def _start_app(self, now: float) -> None:
        """Acquire the lease, start a run and the process that carries it out; nothing where that is not possible now."""
        from fedretrain.server.server_app import AppOrders, read_nodes

        holder = uuid.uuid4().hex
        fence = self._log.acquire(self._lease, holder, now=self._clock(), ttl_s=_TTL_S)
        if fence is None:
            return
        self._fence, self._holder = fence, holder
        try:
            if self._files.nodes is not None:
                self._superlink.admit(read_nodes(self._files.nodes))
            self._run = self._superlink.start_run(self._bundle)
        except (FedretrainError, httpx.HTTPError):  # it is tried again
            self._end_app()
            return
        files, config = self._files, self._superlink.config
        orders = AppOrders(
            database=files.database,
            store=files.store,
            campaign=self.campaign,
            lease=fence.name,
            token=fence.token,
            superlink=config.address,
            secret=str(self._superlink.secret),
            run=self._run,
            root_certificates="" if config.insecure else str(config.root_certificates),
            nodes=str(files.nodes or ""),
            witness=str(files.witness or ""),
        )
        files.folder.mkdir(parents=True, exist_ok=True)
        words = ("-m", "fedretrain.server.server_app")
        env = {**orders.to_env(), "FLWR_TELEMETRY_ENABLED": "0"}
        self.app = Child(Command(words, files.folder / f"{self.campaign}.log", env))
        self.app.ensure(now)
        self._backoff.begun(now)
        self._superlink_starts = self._superlink.child.num_starts
