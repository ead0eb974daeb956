"""`python -m sim gate candidate=... fleet=...`: the simulator as a gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.rollout.verdict import Verdict
from sim.fit.files import read_fleet
from sim.gating.config import read_words
from sim.gating.contenders import check_layout, load_contender, read_weights
from sim.gating.gate import SimulationGate
from sim.gating.report import render, sources, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.fit.files import FleetFile
    from sim.gating.config import GateConfig
    from sim.gating.gate import Contender, GateResult
    from sim.results import Run

STATUS = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 3}
"""Exit status by verdict; 2 is a user's error."""


def gate_command(words: Sequence[str]) -> int:
    """Judge a candidate, print the report and write it for programs.

    Args:
        words: KEY=VALUE words of `GateConfig`.

    Returns:
        The exit status, see `STATUS`.

    Raises:
        UserError: If a word, a run or the fleet is wrong.
    """
    config = read_words(words)
    if config.address:
        from sim.gating.remote import judge_there

        return judge_there(config)
    return judge(config)


def judge(config: GateConfig) -> int:
    """As `gate_command`, here, whatever its `address` says."""
    gate = SimulationGate(config, _fleet(config))
    runs: dict[str, Run] = {}
    champion: Contender | None = None
    if config.champion:
        champion, runs["champion"] = load_contender(config.champion, config.champion_arm)
    result, candidate, champion = _judged(gate, config, champion, runs)
    found = sources(gate.fleet, candidate, champion, runs)
    print(render(result, found))
    write_json(config, result, found)
    print(f"for programs: {config.out}")
    return STATUS[result.verdict]


def _judged(
    gate: SimulationGate, config: GateConfig, champion: Contender | None, runs: dict[str, Run]
) -> tuple[GateResult, Contender | None, Contender | None]:
    if config.candidate.endswith(".json"):
        from sim.gating.production import load_campaign

        candidate, champion = load_campaign(Path(config.candidate))
        return gate.judge(candidate, champion), candidate, champion
    if champion is not None and config.candidate.endswith(".safetensors"):
        weights = read_weights(Path(config.candidate))
        check_layout(weights, champion)
        return gate.judge_weights(weights, champion), None, champion
    candidate, runs["candidate"] = load_contender(config.candidate, config.arm)
    return gate.judge(candidate, champion), candidate, champion


def _fleet(config: GateConfig) -> FleetFile:
    """The fitted fleet: named, or fitted now to the log that is named, and written beside it."""
    if not config.log:
        return read_fleet(Path(config.fleet))
    from sim.fit.command import fit_command

    out = Path(config.log).with_suffix(".yaml")
    fit_command([config.log, str(out)])
    return read_fleet(out)
