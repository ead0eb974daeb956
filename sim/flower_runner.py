"""A cohort as Flower messages, through Flower's own simulation: slow, and the proof that production computes the same.

Rules of this file:
    * Each client of a cohort is one message to a virtual SuperNode; its reply goes to the reducer as a block of one.
    * `FlowerRunner` asks for nothing but a `Grid`: of `python -m sim runner=flower` (`FlowerSimulation`), or of the
      ServerApp that `flwr run` starts (`flower_app`).
    * A reply that is an error, or that never comes, costs its own client. An app that raises is a defect of ours and
      ends the run.
    * The virtual clock and the scores are the simulator's own and stay in this process.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import replace
from queue import Empty, Queue
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.coordinator.reduce import Reducer
from fedretrain.core.errors import FedretrainError
from fedretrain.core.params import Layout
from fedretrain.core.types import ClientFailure, FailureKind
from sim.evaluation import evaluate
from sim.local_runner import cut_deadline
from sim.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flwr.app import Message
    from flwr.serverapp import Grid
    from numpy.typing import NDArray

    from fedretrain.coordinator.ports import Oracle, RoundSpec, ShardResult
    from fedretrain.core.params import Params
    from fedretrain.wire.records import TrainOrder
    from sim.arm import Arm
    from sim.evaluation import Evaluation
    from sim.flower_device import Beside
    from sim.personal_store import PersonalStore
    from sim.schema import RunnerConfig

    Ids = NDArray[np.int64]

_MAX_NODES = 64  # a node serves several devices; Flower polls each, ten times a second
_WINDOW = 128  # messages under way: what bounds memory, each holds a model
_POLL_S = 0.02
_PATIENCE_S = 300.0  # without any reply
_START_S = 120.0


class FlowerRunner:
    """Trains cohorts on the nodes of a Flower grid; see `local_runner.SimulatedRunner`.

    Args:
        arm: The world, the model and the method; its configuration travels with each order.
        store: The devices' personal states.
        grid: Flower's.
    """

    def __init__(self, arm: Arm, store: PersonalStore, grid: Grid) -> None:
        from sim.flower_device import arm_text

        self._arm, self._store, self._grid = arm, store, grid
        assert arm.executor  # a model that cannot be trained is refused here, not in every device
        self._text = arm_text(arm.config)
        self._nodes = sorted(grid.get_node_ids())
        if not self._nodes:
            raise FedretrainError("Flower has no nodes")

    def run(self, spec: RoundSpec, cohort: Ids) -> Iterator[ShardResult]:
        """One shard: the replies as they come in."""
        if spec.stop_after is not None:
            spec = cut_deadline(spec, Worker(self._arm).reply_times(spec, cohort))
        yield _Round(spec, cohort).finish(self._replies(spec, cohort), self._store)

    def evaluate(self, shared: Params, devices: Ids, *, round_: int, at: float) -> Evaluation:
        """All devices here."""
        return evaluate(self._arm, shared, devices, self._store.get(devices.tolist()), round_=round_, at=at)

    def close(self) -> None:
        """The grid is the run's, not the arm's: nothing to free."""

    def _replies(self, spec: RoundSpec, cohort: Ids) -> Iterator[tuple[TrainOrder, Message | None]]:
        """Each client's order with its reply as it comes; None for one that never came."""
        from fedretrain.server.grid_runner import Correspondence, Pace, train_order

        pace = Pace(window=_WINDOW, pull=_WINDOW, poll_s=_POLL_S, patience_s=_PATIENCE_S)
        correspondence = Correspondence(self._grid, pace)
        # Not clipped on the device: the aggregate is then the other runners', bit for bit.
        unclipped = replace(spec, clip_norm=None)
        orders = (train_order(unclipped, client, {}) for client in cohort.tolist())
        for order, reply in correspondence.replies(orders, self._message):
            if reply is None and not correspondence.heard:
                raise FedretrainError(f"Flower's nodes answered nothing for {_PATIENCE_S:g} s")
            yield order, reply

    def _message(self, order: TrainOrder) -> Message:
        from flwr.app import Message

        from fedretrain.wire.records import encode_order
        from sim.flower_device import beside_order

        content, device = encode_order(order), int(order.client)
        personal = self._store.get([device]).get(device)
        for name, record in beside_order(self._text, self._arm.seed, personal).items():
            content[name] = record
        node = self._nodes[device % len(self._nodes)]
        return Message(content, node, "train", group_id=str(order.round))


class _Round:
    """The replies of one round on their way into one partial sum."""

    def __init__(self, spec: RoundSpec, cohort: Ids) -> None:
        self._layout = Layout.of(spec.base)
        self._reducer = Reducer(spec, cohort)
        self._known: dict[int, Beside] = {}

    def finish(
        self, replies: Iterator[tuple[TrainOrder, Message | None]], store: PersonalStore
    ) -> ShardResult:
        """Everything reduced, and personal states back in the store."""
        for order, reply in replies:
            if reply is None:
                self._reducer.fail([ClientFailure(order.client, FailureKind.LOST, "no reply")])
            elif self._take(order, reply):
                personal = self._known[int(order.client)].personal
                if personal is not None:
                    store.stage(np.array([order.client], dtype=np.int64), personal[None, :])
        known = self._known.values()
        result = self._reducer.result(
            bytes_down=sum(one.bytes_down for one in known),
            bytes_up=sum(one.bytes_up for one in known),
            busy_s=sum(one.busy_s for one in known),
        )
        return replace(result, oracle=self._oracle(result.oracle))

    def _take(self, order: TrainOrder, reply: Message) -> bool:
        """Reduce one reply; True if the device answered at all."""
        from flwr.common.constant import ErrorCode

        from fedretrain.wire.records import decode_reply
        from sim.flower_device import read_beside

        if reply.has_error():
            raised = (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.LOAD_CLIENT_APP_EXCEPTION)
            if reply.error.code in raised:
                raise FedretrainError(f"the ClientApp failed: {reply.error.reason}")
            self._reducer.fail([ClientFailure(order.client, FailureKind.LOST, str(reply.error.reason)[:200])])
            return False
        read = decode_reply(order, self._layout, reply.content)
        if isinstance(read, ClientFailure):
            self._reducer.fail([read])
        else:
            self._reducer.add(read.block)
        self._known[int(order.client)] = read_beside(reply.content)
        return True

    def _oracle(self, oracle: Oracle) -> Oracle:
        """With what the simulator knows, and no order asks for."""
        known = [self._known[client] for client in oracle.clients.tolist()]
        return replace(
            oracle,
            num_examples=np.array([one.num_examples for one in known], dtype=np.int64),
            loss=np.array([one.loss for one in known], dtype=np.float32),
        )


class GridPool:
    """The nodes of a Flower run that goes on without us.

    Args:
        grid: Flower's.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def runner(self, arm: Arm, store: PersonalStore) -> FlowerRunner:
        """A runner on these nodes."""
        return FlowerRunner(arm, store, self.grid)

    def peak_memory_bytes(self) -> list[int]:
        """Flower's workers do not tell."""
        return []

    def stop(self) -> None:
        """The run is Flower's to end."""


class FlowerSimulation(GridPool):
    """Flower's simulation runtime in a thread of this process, whose own loop uses the grid.

    Args:
        num_nodes: Virtual SuperNodes.
        share: CPUs of Ray's for each of its actors.
    """

    def __init__(self, num_nodes: int, share: float) -> None:
        self._ended, self._handed = threading.Event(), Queue[object]()
        self._thread = threading.Thread(target=self._serve, args=(num_nodes, share), daemon=True)
        self._thread.start()
        super().__init__(self._started(num_nodes))

    @classmethod
    def start(cls, config: RunnerConfig, cohort_size: int) -> FlowerSimulation:
        """Start Ray the way we do, and Flower's simulation on it."""
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when it is imported
        import flwr.simulation  # noqa: F401 - sets up its logger, which is then silenced
        import ray

        from sim.ray_runner import start_ray

        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        start_ray(config)
        cpus = float(ray.cluster_resources().get("CPU", 1))
        count = config.num_workers or max(1, int(cpus))
        return cls(max(1, min(cohort_size, _MAX_NODES)), int(1000 * cpus / count) / 1000)

    def stop(self) -> None:
        """End it, and Ray with it, as Flower does."""
        self._ended.set()
        self._thread.join(timeout=60)

    def _serve(self, num_nodes: int, share: float) -> None:
        """The thread that Flower runs in: its ServerApp hands out the grid and waits for the end."""
        from flwr.serverapp import ServerApp
        from flwr.simulation import run_simulation

        from sim.flower_app import client_app

        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, _context: object) -> None:
            self._handed.put(grid)
            self._ended.wait()

        try:
            run_simulation(
                server_app,
                client_app,
                num_nodes,
                backend_config={"client_resources": {"num_cpus": share, "num_gpus": 0.0}},
            )
        except Exception as error:  # noqa: BLE001 - told in the thread that waits for the grid
            self._handed.put(error)

    def _started(self, num_nodes: int) -> Grid:
        try:
            grid = self._handed.get(timeout=_START_S)
        except Empty:
            raise FedretrainError(f"Flower's simulation did not start in {_START_S:g} s") from None
        if isinstance(grid, Exception):
            raise FedretrainError(f"Flower's simulation did not start: {grid}") from grid
        until = time.monotonic() + _START_S
        while len(list(grid.get_node_ids())) < num_nodes:  # type: ignore[attr-defined]
            if time.monotonic() > until:
                raise FedretrainError("Flower's nodes did not come up")
            time.sleep(_POLL_S)
        return grid
