"""What the agent starts for a campaign, and what it refuses to."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedretrain.core.child import Child, Command
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.edge.supernode import MIB, CampaignProcesses, Invitation, NodeKeys, TrainingLimits

INVITATION = Invitation("c", "server.example:9000", "ab" * 32)
KEYS = NodeKeys(Path("device.key"), Path("roots.pem"))


def processes(folder: Path, keys: NodeKeys = KEYS) -> CampaignProcesses:
    limits = TrainingLimits(supernode_bytes=300 * MIB, app_bytes=900 * MIB, niceness=7)
    return CampaignProcesses(INVITATION, keys, folder / "data", folder / "train", limits)


def test_nothing_runs_before_it_is_asked_for(tmp_path: Path) -> None:
    made = processes(tmp_path)
    assert (made.supernode.pid, made.app.pid) == (None, None)
    made.stop()


def test_the_supernode_starts_no_code_of_the_servers(tmp_path: Path) -> None:
    words = processes(tmp_path).supernode.command.words
    assert words[words.index("--isolation") + 1] == "process"
    assert "--allow-runtime-dependency-installation" not in words
    assert words[words.index("--superlink") + 1] == "server.example:9000"


def test_the_app_serves_the_invitations_bundle_alone(tmp_path: Path) -> None:
    made = processes(tmp_path)
    words = made.app.command.words
    assert words[words.index("--bundle") + 1] == INVITATION.bundle
    port = made.supernode.command.words[made.supernode.command.words.index("--port") + 1]
    assert words[words.index("--runtime") + 1] == f"127.0.0.1:{port}"


def test_both_share_a_secret_that_nobody_else_can_read(tmp_path: Path) -> None:
    made = processes(tmp_path)
    secret = Path(made.app.command.words[made.app.command.words.index("--secret") + 1])
    assert str(secret) in made.supernode.command.words
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    before = secret.read_bytes()
    processes(tmp_path)
    assert secret.read_bytes() != before


def test_both_are_limited(tmp_path: Path) -> None:
    made = processes(tmp_path)
    assert made.supernode.command.memory_bytes == 300 * MIB
    assert made.app.command.memory_bytes == 900 * MIB
    assert {made.supernode.command.niceness, made.app.command.niceness} == {7}
    assert made.app.command.env["FLWR_TELEMETRY_ENABLED"] == "0"


def test_without_keys_only_on_a_development_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the device's key"):
        NodeKeys()
    with pytest.raises(ConfigError, match="the device's key"):
        NodeKeys(private_key=Path("k"))
    assert "--insecure" in processes(tmp_path, NodeKeys(insecure=True)).supernode.command.words
    words = processes(tmp_path).supernode.command.words
    assert "--insecure" not in words
    assert words[words.index("--auth-supernode-private-key") + 1] == "device.key"
    assert words[words.index("--root-certificates") + 1] == "roots.pem"


@pytest.mark.parametrize("killed", ["supernode", "app"])
def test_one_that_dies_is_started_again_with_the_other(tmp_path: Path, killed: str) -> None:
    made = processes(tmp_path)
    words = ("-c", "import time; time.sleep(60)")
    for name in ("supernode", "app"):
        setattr(made, name, Child(Command(words, tmp_path / f"{name}.log")))
    made.ensure(0.0)
    made.ensure(1.0)
    pid = getattr(made, killed).pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    made.ensure(2.0)
    assert (made.supernode.pid, made.app.pid) == (None, None)
    for now in range(3, 60):
        made.ensure(float(now))
        assert made.supernode.is_alive
        assert made.app.is_alive
    assert (made.supernode.num_starts, made.app.num_starts) == (2, 2)
    made.stop()


@pytest.mark.parametrize("bundle", ["", "AB" * 32, "ab" * 31, "../" + "a" * 61])
def test_a_bundle_is_named_by_its_digest(bundle: str) -> None:
    with pytest.raises(DataError, match="not a SHA-256"):
        Invitation("c", "server.example:9000", bundle)


def test_where_the_second_cannot_be_started_the_first_is_ended_and_both_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = processes(tmp_path)
    for child in (made.supernode, made.app):
        child.command = Command(("-c", "import time; time.sleep(60)"))

    def refuse() -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as patched:
        patched.setattr(made.app, "start", refuse)
        made.ensure(0.0)
        assert made.supernode.is_alive
        made.ensure(0.5)  # it is not due again
    assert (made.supernode.is_alive, made.supernode.num_starts) == (False, 1)
    assert "training cannot be started, it is tried again: [Errno" in caplog.text
    made.ensure(2.0)
    assert made.supernode.is_alive
    assert made.app.is_alive
    made.stop()


def test_the_agent_is_without_torch_and_without_flower() -> None:
    code = (
        "import sys, fedretrain.edge.supernode, fedretrain.edge.training_data;"
        "print(sorted({'torch', 'flwr'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
