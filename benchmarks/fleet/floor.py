"""A round's time beside Flower's own floor: our campaign's rounds, and rounds of a Flower app that does nothing.

Rules of this file:
    * Both over a SuperLink and two SuperNodes, real processes on the loopback interface, plain HTTP: keys cost neither anything in a round.
    * Ours is a whole round: ask, train a small model on two devices for each node, clip, add noise, charge the ledger, release, commit.
    * Flower's is a no-op: one message to each node and its empty reply, as Flower's own SuperNode answers it, a process for each message.
    * The first round of either pays for what is started once, and is told apart.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.fleet.office import environment, free_ports, listens
from fedretrain.artifacts.at_rest import AtRest, StorePlace
from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.weights import encode_params
from fedretrain.core.ids import ClientId
from fedretrain.core.types import ClientData
from fedretrain.edge.supernode import CampaignProcesses, Invitation, NodeKeys
from fedretrain.edge.training_data import FolderData
from fedretrain.server.campaign import CampaignDefinition, campaign_stream, define_campaign
from fedretrain.server.campaign_process import CampaignFiles, CampaignProcess
from fedretrain.server.campaign_rules import CampaignRules, PrivacyRule, SamplingRule
from fedretrain.server.database import open_database
from fedretrain.server.event_log import EventLog
from fedretrain.server.superlink import SuperLink, SuperLinkConfig, campaign_bundle
from fedretrain.training.config import LocalTraining, OptimizerConfig
from fedretrain.training.plan import ModelName, TrainingPlan

if TYPE_CHECKING:
    from benchmarks.fleet.sizes import Size

NUM_NODES, NUM_DEVICES = 2, 4
LIMIT_S = 400.0
_PLAN = TrainingPlan(
    ModelName.MLP,
    (16,),
    3,
    options={"hidden": (8,)},
    training=LocalTraining(batch_size=16, epochs=1, optimizer=OptimizerConfig(lr=0.1)),
)
_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "noop"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "noop:server"
clientapp = "noop:client"
[tool.flwr.app.config]
out = ""
rounds = 1
nodes = 1
"""
_APP = """\
import json, time
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server = ServerApp()
client = ClientApp()


@client.query()
def answer(message, context):
    return Message(RecordDict(), reply_to=message)


@server.main()
def main(grid, context):
    config, took = context.run_config, []
    while len(nodes := list(grid.get_node_ids())) < config["nodes"]:
        time.sleep(0.2)
    for number in range(config["rounds"]):
        begun = time.monotonic()
        sent = [Message(RecordDict(), dst_node_id=node, message_type="query", group_id=str(number)) for node in nodes]
        waiting = set(grid.push_messages(sent))
        while waiting:
            for reply in grid.pull_messages(list(waiting)):
                waiting.discard(reply.metadata.reply_to_message_id)
            time.sleep(0.05)
        took.append(time.monotonic() - begun)
        with open(config["out"], "w") as file:
            json.dump(took, file)
"""


def measure(size: Size) -> list[dict[str, Any]]:
    """One line."""
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "ours").mkdir()
        (Path(made) / "flower").mkdir()
        ours = _ours(Path(made) / "ours", size.num_rounds)
        flower = _flower(Path(made) / "flower", size.num_rounds)
    later, floor = statistics.median(ours[1:]), statistics.median(flower[1:])
    return [
        {
            "case": "round",
            "over_flowers_no_op": round(later / floor, 2),
            "round_s": round(later, 2),
            "flower_no_op_s": round(floor, 2),
            "first_round_s": round(ours[0], 2),
            "flower_first_s": round(flower[0], 2),
            "num_rounds": size.num_rounds,
            "num_nodes": NUM_NODES,
            "num_devices": NUM_DEVICES,
            "machine_load": round(os.getloadavg()[0], 1),
        }
    ]


def _ours(folder: Path, num_rounds: int) -> list[float]:
    """Seconds of each round of a campaign, by the instants at which they were committed."""
    url = f"sqlite:///{folder / 'server.db'}"
    log, store = EventLog(open_database(url)), ContentStore(folder / "store")
    link = SuperLink(SuperLinkConfig(port=free_ports(1)[0], insecure=True), folder / "superlink")
    agents = [_agent(folder / f"agent-{number}", link, number) for number in range(NUM_NODES)]
    definition = _definition(store, num_rounds)
    define_campaign(log, definition, at=time.time(), fence=None)
    place = StorePlace(str(folder / "store"), AtRest(development=True))
    files = CampaignFiles(url, place, folder / "apps", None, folder / "witness")
    campaign = CampaignProcess("bench", log, link, files)
    began, until = time.time(), time.monotonic() + LIMIT_S
    try:
        while campaign.ensure(time.monotonic()):
            for agent in agents:
                agent.ensure(time.monotonic())
            if time.monotonic() > until:
                raise RuntimeError(f"the campaign did not end in {LIMIT_S:.0f} s")
            time.sleep(0.2)
    finally:
        campaign.stop()
        for agent in agents:
            agent.stop()
        link.stop()
    done = [entry.at for entry in log.read(campaign_stream("bench")) if entry.record["type"] == "round"]
    log.engine.dispose()
    return list(np.diff([began, *done]))


def _definition(store: ContentStore, num_rounds: int) -> CampaignDefinition:
    """The campaign of our rounds."""
    rules = CampaignRules(
        SamplingRule(cohort_size=NUM_DEVICES),
        quorum=NUM_DEVICES,
        deadline_s=120.0,
        privacy=PrivacyRule(1.0, 0.5),
    )
    return CampaignDefinition(
        "bench",
        "bench",
        NUM_DEVICES,
        store.put(encode_params(_PLAN.make().first_shared())),
        num_rounds,
        _PLAN,
        rules,
        seed=7,
        min_online=NUM_DEVICES,
        bundle=store.put(campaign_bundle().content),
    )


def _agent(folder: Path, link: SuperLink, number: int) -> CampaignProcesses:
    """The processes of a device that trains for two clients."""
    for client in range(number, NUM_DEVICES, NUM_NODES):
        rng = np.random.default_rng(client)
        x = rng.normal(size=(64, 16)).astype(np.float32)
        y = (np.abs(x).argmax(axis=1) % 3).astype(np.int64)
        FolderData(folder / "data").put_examples(ClientId(client), ClientData(x, y))
    invitation = Invitation("any", link.config.address, campaign_bundle().digest)
    return CampaignProcesses(invitation, NodeKeys(insecure=True), folder / "data", folder)


def _flower(folder: Path, num_rounds: int) -> list[float]:
    """Seconds of each round of a Flower app that does nothing, started as Flower's documents do."""
    (folder / "app").mkdir()
    (folder / "app" / "pyproject.toml").write_text(_PROJECT)
    (folder / "app" / "noop.py").write_text(_APP)
    out, port = folder / "took.json", free_ports(1)[0]
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    off = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    env = environment() | off | {"FLWR_HOME": str(home), "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
    script = Path(sys.executable).parent
    env["PATH"] = f"{script}:{env.get('PATH', '')}"
    link = [str(script / "flower-superlink"), "--insecure", "--disable-runtime-dependency-installation"]
    started = [_start(folder, "link", [*link, "--host", "127.0.0.1", "--port", str(port)], env)]
    try:
        _wait(lambda: listens(port), "the SuperLink listens", folder)
        for node in range(NUM_NODES):
            words = [str(script / "flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}"]
            started.append(_start(folder, f"node-{node}", [*words, "--port", str(free_ports(1)[0])], env))
        config = f"out='{out}' rounds={num_rounds} nodes={NUM_NODES}"
        run = [str(script / "flwr"), "run", str(folder / "app"), "here", "--run-config", config]
        subprocess.run(run, check=True, env=env, capture_output=True, text=True, timeout=120)
        _wait(lambda: len(_read(out)) == num_rounds, "every round of the no-op", folder)
    finally:
        for one in reversed(started):
            one.terminate()
        for one in started:
            try:
                one.wait(30)
            except subprocess.TimeoutExpired:
                one.kill()
    return _read(out)


def _start(folder: Path, name: str, words: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, env=env)


def _read(path: Path) -> list[float]:
    try:
        return [float(one) for one in json.loads(path.read_text())]
    except (FileNotFoundError, ValueError):  # not yet, or being written
        return []


def _wait(happened: Any, what: str, folder: Path) -> None:
    until = time.monotonic() + LIMIT_S
    while not happened():
        if time.monotonic() > until:
            logs = "\n".join(log.read_text()[-1000:] for log in sorted(folder.glob("*.log")))
            raise RuntimeError(f"not in {LIMIT_S:.0f} s: {what}\n{logs}")
        time.sleep(0.2)
