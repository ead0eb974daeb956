# ruff: noqa: N802 - Flower's names
"""The process that serves one task after another, beside a SuperNode's Runtime API in this process."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import context_to_proto, message_from_proto
from flwr.proto.fab_pb2 import Fab
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, PullObjectResponse, PushObjectResponse
from flwr.proto.run_pb2 import Run
from flwr.proto.runtime_pb2 import (
    AcquireTaskResponse,
    PullAppMessagesResponse,
    PullTaskInputResponse,
    PushAppMessagesResponse,
    PushTaskOutputResponse,
    SendTaskHeartbeatResponse,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from fedretrain.core.ids import ClientId
from fedretrain.edge import client_app as module
from fedretrain.edge.client_app import AppProcess, Overtaken
from fedretrain.edge.training_data import FolderData
from tests.flower_cases import examples

if TYPE_CHECKING:
    from pathlib import Path

BUNDLE = b"the bundle"
DIGEST = hashlib.sha256(BUNDLE).hexdigest()


class Task:
    """A roll call of one run; `missing`: the SuperNode never gets the message."""

    def __init__(
        self, run: int, *, bundle: bytes = BUNDLE, missing: bool = False, kind: str = "query"
    ) -> None:
        self.run, self.bundle, self.missing = run, bundle, missing
        message = Message(RecordDict(), 7, kind, group_id="")
        message.metadata.__dict__["_message_id"] = message.object_id
        self.tree = get_object_tree(message)
        self.objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}


class Runtime:
    """As much of a SuperNode's Runtime API as the process asks for; `takes`: whether replies are taken at once."""

    def __init__(self, *tasks: Task, takes: bool = True) -> None:
        self.tasks, self.takes = list(tasks), takes
        self.given: list[Task] = []
        self.replies: list[Message] = []
        self.outputs: list[tuple[int, str, str]] = []
        self.closed = 0

    def for_task(self, token: str) -> RuntimeOfTask:
        return RuntimeOfTask(self, self.given[int(token) - 1])

    def AcquireTask(self, _request: object) -> AcquireTaskResponse:
        """A SuperNode makes the next task when it has done with the last, or given it up."""
        busy = len(self.given) > len(self.outputs) and not self.given[-1].missing
        if busy:
            return AcquireTaskResponse()
        if not self.tasks:
            raise httpx.ConnectError("gone")
        self.given.append(self.tasks.pop(0))
        return AcquireTaskResponse(token=str(len(self.given)))


class RuntimeOfTask:
    def __init__(self, runtime: Runtime, task: Task) -> None:
        self.runtime, self.task = runtime, task
        self.polls = 0

    def PullTaskInput(self, _request: object) -> PullTaskInputResponse:
        context = Context(self.task.run, 7, {}, RecordDict(), {})
        fab = Fab(hash_str="whatever it says", content=self.task.bundle)
        return PullTaskInputResponse(
            context=context_to_proto(context), run=Run(run_id=self.task.run), fab=fab, task_id=self.task.run
        )

    def PullMessages(self, _request: object) -> PullAppMessagesResponse:
        from flwr.proto.message_pb2 import Message as Proto

        self.polls += 1
        if self.polls == 1:  # the task is there before the message
            return PullAppMessagesResponse()
        return PullAppMessagesResponse(messages_list=[Proto()], message_object_trees=[self.task.tree])

    def PullObject(self, request: Any) -> PullObjectResponse:
        if request.object_id in self.task.objects:
            if self.task.missing:
                return PullObjectResponse(object_found=True, object_available=False)
            content = self.task.objects[request.object_id]
            return PullObjectResponse(object_found=True, object_available=True, object_content=content)
        return PullObjectResponse(object_found=not self.runtime.takes)

    def ConfirmMessageReceived(self, _request: object) -> ConfirmMessageReceivedResponse:
        return ConfirmMessageReceivedResponse()

    def PushMessages(self, request: Any) -> PushAppMessagesResponse:
        self.runtime.replies.append(message_from_proto(request.messages_list[0]))
        return PushAppMessagesResponse(message_ids=["x"], session_id="s")

    def PushObject(self, _request: object) -> PushObjectResponse:
        return PushObjectResponse(stored=True)

    def PushTaskOutput(self, request: Any) -> PushTaskOutputResponse:
        self.runtime.outputs.append((self.task.run, request.sub_status, request.details))
        return PushTaskOutputResponse()

    def SendTaskHeartbeat(self, _request: object) -> SendTaskHeartbeatResponse:
        return SendTaskHeartbeatResponse(success=True)

    def close(self) -> None:
        self.runtime.closed += 1


@pytest.fixture(autouse=True)
def _a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FolderData(tmp_path).put_examples(ClientId(3), examples(3))
    monkeypatch.setenv(module.DATA, str(tmp_path))
    monkeypatch.setattr(module, "_POLL_S", 0.001)
    monkeypatch.setattr(module, "_TAKEN_S", 0.01)
    monkeypatch.setattr(module, "_GONE_S", 0.2)
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def process_of(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> AppProcess:
    def client(_self: AppProcess, interceptor: Any, component: str) -> object:
        return runtime if component == "SuperExec" else runtime.for_task(interceptor.token)

    monkeypatch.setattr(AppProcess, "_client", client)
    monkeypatch.setattr(
        module, "RuntimeTokenHttpInterceptor", lambda token: type("I", (), {"token": token})()
    )
    return AppProcess("nowhere", b"secret", DIGEST)


def test_it_answers_once_the_message_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(Task(1))
    process = process_of(runtime, monkeypatch)
    process.serve(process._acquire())
    (reply,) = runtime.replies
    assert not reply.has_error()
    assert runtime.outputs == [(1, "completed", "")]
    assert runtime.closed == 1


def test_another_bundle_gets_an_error_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content is hashed: what it says of itself does not matter."""
    runtime = Runtime(Task(1, bundle=b"other code"))
    process = process_of(runtime, monkeypatch)
    monkeypatch.setattr(module, "client_app", None)  # nothing is called
    process.serve(process._acquire())
    (reply,) = runtime.replies
    assert reply.has_error()
    assert "not the campaign's" in reply.error.reason
    assert runtime.outputs[0][1] == "failed"


def test_an_app_that_raises_costs_its_own_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order that is none; the next message is answered."""
    runtime = Runtime(Task(1, kind="train"), Task(1))
    process = process_of(runtime, monkeypatch)
    process.serve(process._acquire())
    process.serve(process._acquire())
    first, second = runtime.replies
    assert first.has_error()
    assert "WireError" in first.error.reason
    assert not second.has_error()


def test_a_task_without_its_message_gives_way_to_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(Task(1, missing=True), Task(2))
    process = process_of(runtime, monkeypatch)
    with pytest.raises(Overtaken) as overtaken:
        process.serve(process._acquire())
    assert runtime.outputs[0][:2] == (1, "failed")
    process.serve(overtaken.value.token)
    assert runtime.outputs[1][:2] == (2, "completed")


def test_many_tasks_are_served_until_the_supernode_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(Task(1), Task(1, missing=True), Task(1), Task(1))
    process = process_of(runtime, monkeypatch)
    process.run()
    assert [status for _, status, _ in runtime.outputs] == ["completed", "failed", "completed", "completed"]


def test_it_ends_where_the_supernode_is_one_reply_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(Task(1), Task(2), Task(2), takes=False)
    process_of(runtime, monkeypatch).run()
    assert [run for run, _, _ in runtime.outputs] == [1, 2]  # the third is the next process's
    assert len(runtime.tasks) == 1


def test_it_goes_on_where_the_supernode_takes_the_replies_of_another_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = Runtime(Task(1), Task(2), Task(3), Task(3))
    process = process_of(runtime, monkeypatch)
    while runtime.tasks:
        process.serve(process._acquire())
    assert not process._is_behind
    assert [status for _, status, _ in runtime.outputs] == ["completed"] * 4
