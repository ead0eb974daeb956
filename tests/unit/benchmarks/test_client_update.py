"""The benchmark's own engines agree on weights, and saved runs compare."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.client_update.cases import CASES
from benchmarks.client_update.engines import Rounds
from benchmarks.peers.loop import build, train_client


@pytest.mark.parametrize("name", ["mlp_ragged", "mlp_fedper", "mlp_dp"])
def test_each_and_batched_agree(name):
    case = replace(CASES[name], num_clients=6)
    found = {}
    for engine in ("each", "batched"):
        rounds = Rounds(engine, case.job, case.problem())
        rounds.run()
        found[engine] = rounds.weights()
    assert found["each"].keys() == found["batched"].keys()
    for key, leaf in found["each"].items():
        np.testing.assert_allclose(found["batched"][key], leaf, atol=1e-5)


def test_the_peers_plain_loop_sees_the_same_batches():
    import torch

    case = replace(CASES["mlp"], num_clients=1)
    problem = case.problem()
    rounds = Rounds("batched", case.job, problem)
    rounds.run()
    model = build(case.job)
    model.load_state_dict({name: torch.from_numpy(leaf.copy()) for name, leaf in problem.weights.items()})
    train_client(model, *problem.client(0), case.job)
    for name, leaf in model.state_dict().items():
        np.testing.assert_allclose(rounds.weights()[name], leaf.numpy(), atol=1e-5)


def test_changes_beyond_noise_only():
    old = {"case": "mlp", "cpu_ms": {"batched": 1.0, "each": 9.0}, "spread": {"batched": 0.02, "each": 0.3}}
    new = {"case": "mlp", "cpu_ms": {"batched": 1.2, "each": 10.0}, "spread": {"batched": 0.02, "each": 0.3}}
    verdicts = {line["engine"]: line["verdict"] for line in compare.changes(old, new)}
    assert verdicts == {"batched": "slower", "each": "no change"}
    assert compare.changes(new, old)[0]["verdict"] == "faster"
