"""Training on a device: a Flower ClientApp, and the process that serves many messages with one import of torch.

Rules of this file:
    * The only module of `edge` that may import torch or Flower. The agent starts it as a process while a campaign runs.
    * The server sends no code: a bundle is hashed and never opened. Another hash than the signed campaign's is refused,
      and what runs is the installed `client_app`.
    * With example-level DP the ledger is charged durably before the answer is made (`example_privacy`).
    * Training is `fedretrain.training`, the simulator's. A device that cannot train answers with a failure; personal
      state is committed here, and is in no message.
    * The device clips to slightly more than the clip norm, and the server to the norm itself: so the server still sees
      who was clipped, which adaptive clipping asks.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto
from flwr.proto.message_pb2 import PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from fedretrain.core import leash
from fedretrain.core.errors import UserError
from fedretrain.core.params import Layout
from fedretrain.core.rng import seed_for
from fedretrain.core.types import FailureKind, UpdateBlock
from fedretrain.edge.example_privacy import Guard, is_fitted_jointly
from fedretrain.edge.training_data import open_data
from fedretrain.training.config import Upload
from fedretrain.training.executor import ClientWork
from fedretrain.training.plan import TrainingPlan
from fedretrain.training.upload import CLIP_MARGIN, pack
from fedretrain.wire.records import PLAN_OPTION, decode_order, encode_failure, encode_roll, encode_update

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flwr.app import Context, RecordDict

    from fedretrain.edge.training_data import DeviceData
    from fedretrain.training.plan import Trainer
    from fedretrain.training.upload import Packed
    from fedretrain.wire.records import TrainOrder

DATA = "FEDRETRAIN_DEVICE_DATA"
"""Environment variable: where this agent's `DeviceData` is."""
CAMPAIGN = "FEDRETRAIN_CAMPAIGN"
"""Environment variable: the campaign's id, as the signed invitation names it."""
_POLL_S = 0.1
_GONE_S = 60.0  # a SuperNode that is not heard of for so long is not coming back: the agent starts both anew
_TAKEN_S = 20.0
_log = logging.getLogger(__name__)
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})


class Device:
    """Answers orders for the logical devices of one agent.

    Args:
        data: Their examples and personal states.
        campaign: What the ledger of example-level DP calls this training.
    """

    def __init__(self, data: DeviceData, campaign: str = "") -> None:
        self._data, self._campaign = data, campaign
        self._trainers: dict[str, Trainer] = {}

    def roll(self) -> RecordDict:
        """Which clients answer here."""
        return encode_roll(self._data.clients())

    def answer(self, records: RecordDict) -> RecordDict:
        """Carry out an order.

        Raises:
            WireError: If the message is none.
        """
        order = decode_order(records)
        begun = time.process_time()
        try:
            block = self._train(order)
        except UserError as error:
            return encode_failure(order, FailureKind.REFUSED, str(error))
        except MemoryError:
            return encode_failure(order, FailureKind.REFUSED, "not enough memory to train")
        if isinstance(block, FailureKind):
            return encode_failure(order, block)
        packed = self._packed(order, block)
        block = clipped(block, order.clip_norm)
        return encode_update(order, block, busy_s=time.process_time() - begun, packed=packed)

    def _packed(self, order: TrainOrder, block: UpdateBlock) -> Packed | None:
        """The update quantised, inside the bound that `clipped` holds, its error kept for the next one; None: sent whole."""
        if self._trainer(str(order.options.get(PLAN_OPTION, ""))).plan.training.upload is not Upload.INT8:
            return None
        layout, left = Layout.of(order.base), self._data.residual(order.client, self._campaign)
        before = np.zeros(layout.size, np.float32) if left is None or len(left) != layout.size else left
        bound = None if order.clip_norm is None else order.clip_norm * CLIP_MARGIN
        packed, residual_KP = pack(block.delta_KP, before[None, :], layout, bound)
        self._data.commit_residual(order.client, residual_KP[0], self._campaign)
        return packed

    def _train(self, order: TrainOrder) -> UpdateBlock | FailureKind:
        data = self._data.examples(order.client, order.at)
        if data is None:
            return FailureKind.REFUSED
        if not len(data):
            return FailureKind.NO_DATA
        trainer = self._trainer(str(order.options.get(PLAN_OPTION, "")))
        guard = self._guard(order, trainer, len(data))
        noised = is_fitted_jointly(trainer.plan.training, trainer.plan.method.kind)
        if set(order.base) != set(trainer.task.shared.names):
            return FailureKind.REFUSED
        seed = seed_for(order.seed, order.round, int(order.client), "training")
        work = ClientWork(order.client, data, self._data.personal(order.client, noised=noised), seed)
        (block,) = trainer.executor.train(order.base, [work])
        if guard is not None:
            guard.charge()
        if trainer.task.personal.size:
            row = block.personal_KQ[0]
            self._data.commit_personal(order.client, row, order.base_version, noised=noised)
        return block

    def _guard(self, order: TrainOrder, trainer: Trainer, num_examples: int) -> Guard | None:
        """What must be charged before the answer leaves; None without example-level DP."""
        if trainer.plan.training.example_dp is None:
            return None
        return Guard(
            trainer.plan.training,
            trainer.task.phases(),
            self._data.account(order.client),
            num_examples=num_examples,
            campaign=self._campaign,
            round_=order.round,
            at=order.at,
            with_statistics=order.with_statistics,
        )

    def _trainer(self, plan: str) -> Trainer:
        """A campaign has one plan: the next one's takes its place."""
        if plan not in self._trainers:
            self._trainers = {plan: TrainingPlan.from_text(plan).make(secret=True)}
        return self._trainers[plan]


def clipped(block: UpdateBlock, clip_norm: float | None) -> UpdateBlock:
    """The update with its norm at most `clip_norm` times `CLIP_MARGIN`; unchanged without a clip norm."""
    if clip_norm is None:
        return block
    norm = float(np.linalg.norm(block.delta_KP.astype(np.float64)))
    if not norm > clip_norm * CLIP_MARGIN:
        return block
    delta_KP = (block.delta_KP * (clip_norm * CLIP_MARGIN / norm)).astype(np.float32)
    return UpdateBlock(block.clients, delta_KP, block.num_examples, block.loss, block.personal_KQ)


client_app = ClientApp()
_devices: dict[str, Device] = {}


def _device() -> Device:
    """The device of this process, made at the first message."""
    import torch

    where = os.environ[DATA]
    if where not in _devices:
        torch.set_num_threads(1)  # one core; and the same sums as in the simulator
        _devices[where] = Device(open_data(where), os.environ.get(CAMPAIGN, ""))
    return _devices[where]


@client_app.train()
def train(message: Message, _context: Context) -> Message:
    """An order: train and answer."""
    return Message(_device().answer(message.content), reply_to=message)


@client_app.query()
def query(message: Message, _context: Context) -> Message:
    """A roll call."""
    return Message(_device().roll(), reply_to=message)


class Overtaken(Exception):  # noqa: N818 - no error: the SuperNode has given up a message and has another
    """A newer task came while one waited for its message.

    Args:
        token: Of the newer task.
    """

    def __init__(self, token: str) -> None:
        super().__init__("the SuperNode has given this message up")
        self.token = token


class AppProcess:
    """Takes one task after another from a SuperNode that was started with ``--isolation process``.

    A SuperNode has one message at a time, and forgets nothing where a run has ended meanwhile. Two things follow. It makes
    the task before the message is there: a task without its message waits until there is a newer one. And it sends whatever
    reply it has when it next receives a message, so after a stale one it would be one reply behind for good: where it does
    not take the first reply of another run, this process ends, and the agent starts both anew.

    Args:
        address: The SuperNode's Runtime API, ``HOST:PORT``, on the loopback interface.
        secret: Shared with the SuperNode: no other local process may take its tasks.
        bundle: SHA-256 of the only app bundle that is served.
    """

    def __init__(self, address: str, secret: bytes, bundle: str) -> None:
        self._address, self._bundle = address, bundle
        self._run, self._is_behind = 0, False
        self._acquirer = self._client(
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE), "SuperExec"
        )

    def run(self) -> None:
        """Serve until the SuperNode is gone, or of no use any more."""
        heard_at, token = time.monotonic(), ""
        while time.monotonic() - heard_at < _GONE_S and not self._is_behind:
            try:
                token = token or self._acquire()
                heard_at = time.monotonic()
                if token:
                    self.serve(token)
                token, heard_at = "", time.monotonic()
            except Overtaken as overtaken:
                token = overtaken.token
                continue
            except Exception as error:  # noqa: BLE001 - it is starting, going away, or gave the task up
                _log.info("no task: %s: %s", type(error).__name__, error)
                token = ""
            time.sleep(_POLL_S)

    def serve(self, token: str) -> None:
        """Carry out one task; what goes wrong in it is its own error reply.

        Raises:
            Overtaken: If the SuperNode has given its message up.
        """
        client = self._client(RuntimeTokenHttpInterceptor(token), "flwr-clientapp")
        heartbeat = HeartbeatSender(lambda: _alive(client))
        heartbeat.start()
        details, context = "the task was not carried out", None
        try:
            given = client.PullTaskInput(PullTaskInputRequest())
            TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
            TaskIdentity.node_id = given.context.node_id
            context = context_from_proto(given.context)
            reply, details = self._reply(self._message(client, context), context, given.fab.content)
            push_message(client, reply, context)
            self._watch(client, reply, context)
        finally:
            push_task_output(client, context, SubStatus.FAILED if details else SubStatus.COMPLETED, details)
            heartbeat.stop()
            client.close()

    def _watch(self, client: RuntimeHttpClient, reply: Message, context: Context) -> None:
        """Look whether the SuperNode takes the first reply of another run than before."""
        before, self._run = self._run, context.run_id
        if before in (0, context.run_id):
            return
        request = PullObjectRequest(
            node=Node(node_id=context.node_id), run_id=context.run_id, object_id=reply.metadata.message_id
        )
        until = time.monotonic() + _TAKEN_S
        while client.PullObject(request).object_found:
            if time.monotonic() > until:
                self._is_behind = True
                return
            time.sleep(_POLL_S)

    def _acquire(self) -> str:
        """The token of the oldest task that nobody has taken; empty if there is none."""
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        return str(self._acquirer.AcquireTask(request).token)

    def _message(self, client: RuntimeHttpClient, context: Context) -> Message:
        """The task's message, once the SuperNode has all of it."""
        node = Node(node_id=context.node_id)
        while not (found := client.PullMessages(PullAppMessagesRequest())).messages_list:
            self._wait()
        tree = found.message_object_trees[0]
        pull = make_pull_object_fn_protobuf(client.PullObject, node, context.run_id)
        contents: dict[str, bytes] = {}
        for one in iterate_object_tree(tree):
            while one.object_id not in contents:
                try:
                    contents[one.object_id] = pull(one.object_id)
                except ObjectUnavailableError:
                    self._wait()
        confirm = make_confirm_message_received_fn_protobuf(
            client.ConfirmMessageReceived, node, context.run_id
        )
        confirm(tree.object_id)
        message = inflate_object_from_contents(tree.object_id, contents)
        message.metadata.__dict__["_message_id"] = tree.object_id  # as Flower's own process does
        return message

    def _wait(self) -> None:
        token = self._acquire()
        if token:
            raise Overtaken(token)
        time.sleep(_POLL_S)

    def _reply(self, message: Message, context: Context, bundle: bytes) -> tuple[Message, str]:
        """The reply, and what went wrong."""
        found = hashlib.sha256(bundle).hexdigest()
        if found != self._bundle:
            reason = f"this app bundle is not the campaign's: {found}, not {self._bundle}"
            return Message(Error(ErrorCode.INVALID_FAB, reason), reply_to=message), reason
        try:
            return client_app(message=message, context=context), ""
        except Exception as error:  # noqa: BLE001 - the next message may be a sound one
            reason = f"{type(error).__name__}: {error}"
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code, reason), reply_to=message), reason

    def _client(self, interceptor: object, component: str) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=True,  # the loopback interface of the device
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name=component), interceptor],
            retry_invoker=None,  # Flower's own would end this process where a task was given up
        )


def _alive(client: RuntimeHttpClient) -> bool:
    """Tell the SuperNode that the task is being worked on; False to try again soon."""
    try:
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    except httpx.HTTPError:
        return False
    return True


def main(words: Sequence[str] | None = None) -> int:
    """The app process that the agent starts beside a SuperNode."""
    parser = argparse.ArgumentParser(prog="python -m fedretrain.edge.client_app")
    parser.add_argument("--runtime", required=True, help="the SuperNode's Runtime API, HOST:PORT")
    parser.add_argument("--secret", required=True, help="a file with the secret shared with the SuperNode")
    parser.add_argument("--bundle", required=True, help="SHA-256 of the campaign's app bundle")
    given = parser.parse_args(words)
    leash.watch(os.getppid())
    _device()
    AppProcess(given.runtime, Path(given.secret).read_bytes(), given.bundle).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
