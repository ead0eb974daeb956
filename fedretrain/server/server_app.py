"""The process of one Flower run: it takes the run's task from the SuperLink and carries out a durable campaign.

Rules of this file:
    * A thin shell: what happens in a campaign is `campaign`'s, what travels is `grid_runner`'s. No Flower strategy.
    * It carries out the run that the coordinator started and no other, and opens no app bundle.
    * What it needs comes from the coordinator through the environment, not through the run's configuration, which
      whoever reaches Flower's Control API could set.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, run_from_proto
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.serverapp import ServerApp
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from fedretrain.artifacts.at_rest import StorePlace  # noqa: TC001 - read by `build` at run time
from fedretrain.core import leash
from fedretrain.core.build import build, plain
from fedretrain.core.errors import FedretrainError
from fedretrain.privacy.file_ledger import WitnessFile
from fedretrain.server.campaign import CampaignRun
from fedretrain.server.database import open_database
from fedretrain.server.event_log import EventLog, Fence
from fedretrain.server.grid_runner import CalledNodes, GridRunner, KeyedNodes
from fedretrain.server.steady_clock import SteadyClock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flwr.app import Context
    from flwr.serverapp import Grid

    from fedretrain.server.grid_runner import Nodes

ORDERS = "FEDRETRAIN_SERVER_APP"
"""Environment variable: the JSON of `AppOrders`."""
_LOOK_S = 1.0
_POLL_S = 0.2
_START_S = 60.0
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AppOrders:
    """What the coordinator tells the process.

    Attributes:
        database: URL.
        store: Where campaigns' states are; the key comes from the same source as the coordinator's.
        campaign: Which.
        lease: Name of the lease under which it appends.
        token: The lease's token.
        superlink: ``HOST:PORT``.
        secret: File of the secret shared with the SuperLink.
        run: Flower's number of the run.
        root_certificates: File; empty for plain HTTP.
        nodes: File of the devices of each public key, which the coordinator rewrites as they change: JSON of PEM to
            numbers. Empty in development: nodes say whom they host.
        witness: File of the ledger's witness; empty for none.
    """

    database: str
    store: StorePlace
    campaign: str
    lease: str
    token: int
    superlink: str
    secret: str
    run: int
    root_certificates: str = ""
    nodes: str = ""
    witness: str = ""

    def to_env(self) -> dict[str, str]:
        """As an environment variable."""
        return {ORDERS: json.dumps(plain(self))}


server_app = ServerApp()


@server_app.main()
def main_of_run(grid: Grid, _context: Context) -> None:
    """What the shim in the app bundle names: a campaign by the orders in the environment."""
    run_campaign(build(AppOrders, json.loads(os.environ[ORDERS])), grid)


def run_campaign(
    orders: AppOrders,
    grid: Grid,
    *,
    clock: Callable[[], float] = time.time,
    wait: Callable[[float], None] = time.sleep,
) -> str:
    """Carry out a campaign from wherever it stands; why it ended.

    Raises:
        FencedError: If another process acts now.
    """
    log = EventLog(open_database(orders.database))
    run = CampaignRun(
        log,
        orders.store.open(),
        orders.campaign,
        Fence(orders.lease, orders.token),
        clock=clock,
        witness=WitnessFile(orders.witness) if orders.witness else None,
    )
    definition = run.definition
    nodes: Nodes = CalledNodes(grid, definition.num_devices)
    if orders.nodes:
        nodes = KeyedNodes(grid, lambda: read_nodes(Path(orders.nodes)))
    private = definition.rules.privacy is not None
    runner = GridRunner(grid, nodes, definition.plan.to_text(), private=private)
    while not run.record.end:
        begun = clock()
        online = runner.online(definition.num_devices) & definition.members
        while online.sum() < definition.wanted_online and clock() - begun < definition.patience_s:
            wait(_LOOK_S)
            online = runner.online(definition.num_devices) & definition.members
        begun = clock()
        result = run.step(runner, online)
        if result is not None:
            _log.info("round %d: %s %s", result.round, result.outcome, result.reason)
        if not run.record.end:
            wait(max(0.0, definition.interval_s - (clock() - begun)))
    return run.record.end


def read_nodes(path: Path) -> Mapping[bytes, tuple[int, ...]]:
    """The devices of each public key."""
    found: dict[str, list[int]] = json.loads(path.read_text())
    return {key.encode(): tuple(devices) for key, devices in found.items()}


class RunTask:
    """The task of one run, taken from the SuperLink.

    Args:
        orders: What the coordinator said.
    """

    def __init__(self, orders: AppOrders) -> None:
        self._orders = orders
        roots = orders.root_certificates
        self._roots = Path(roots).read_bytes() if roots else None

    def carry_out(self, work: Callable[[Grid], Any]) -> None:
        """Do the work of the run, with its grid; the run's end tells how it went. Other runs are ended.

        Raises:
            FedretrainError: If the SuperLink has no such run to give.
        """
        while not self._carry_out(self._acquire(), work):
            _log.warning("a run that the coordinator did not start was ended")

    def _carry_out(self, token: str, work: Callable[[Grid], Any]) -> bool:
        """One task; whether it was the coordinator's."""
        grid = HttpGrid(self._orders.superlink, self._roots is None, self._roots, token=token)
        client = grid._runtime_client  # noqa: SLF001 - the grid's own connection, as Flower's own process uses it
        heartbeat = HeartbeatSender(lambda: _alive(client))
        heartbeat.start()
        context, details = None, "this run is not the coordinator's"
        try:
            given = client.PullTaskInput(PullTaskInputRequest())
            TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
            TaskIdentity.node_id = given.context.node_id
            context = context_from_proto(given.context)
            if given.run.run_id != self._orders.run:
                return False
            grid.set_run(run_from_proto(given.run))
            work(grid)
            details = ""
        except Exception as error:
            details = f"{type(error).__name__}: {error}"
            raise
        finally:
            status = SubStatus.FAILED if details else SubStatus.COMPLETED
            told = context_to_proto(context) if context else None
            client.PushTaskOutput(PushTaskOutputRequest(context=told, sub_status=status, details=details))
            heartbeat.stop()
            grid.close()
        return True

    def _acquire(self) -> str:
        """The token of the next task."""
        secret = Path(self._orders.secret).read_bytes()
        client = RuntimeHttpClient.from_server_address(
            server_address=self._orders.superlink,
            insecure=self._roots is None,
            root_certificates=self._roots,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE),
            ],
            retry_invoker=make_simple_http_retry_invoker(),
        )
        until = time.monotonic() + _START_S
        try:
            while time.monotonic() < until:
                taken = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
                if taken.token:
                    return str(taken.token)
                time.sleep(_POLL_S)
        finally:
            client.close()
        raise FedretrainError(f"the SuperLink has no task of run {self._orders.run}")


def _alive(client: RuntimeHttpClient) -> bool:
    """Tell the SuperLink that the run is being worked on; False to try again soon."""
    try:
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    except httpx.HTTPError:
        return False
    return True


def main() -> int:
    """The process that the coordinator starts for a run."""
    leash.watch(os.getppid())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    for name in ("httpx", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    orders = build(AppOrders, json.loads(os.environ[ORDERS]))
    clock = SteadyClock()
    RunTask(orders).carry_out(lambda grid: run_campaign(orders, grid, clock=clock))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
