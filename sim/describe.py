"""The page that heads a run: what was run, where, on what, and what came of it."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import fedretrain
from fedretrain.privacy.claims import scope_text
from fedretrain.privacy.event import Sampling
from sim import checkpoint
from sim.campaign import metric_of
from sim.results import Environment, Metric, Outcome, PrivacySummary, Summary
from sim.schema import PrivacyKind
from sim.summarise import ArmFacts, summarise_arm

if TYPE_CHECKING:
    from datetime import datetime

    from sim.campaign import Campaign
    from sim.experiment import Gathered
    from sim.local_runner import Pool
    from sim.plan import Plan

_PACKAGES = ("torch", "numpy", "flwr", "ray", "opacus", "dp-accounting", "hydra-core", "mlflow")


def describe(plan: Plan, gathered: Gathered, started: datetime, seconds: float) -> Summary:
    """The summary of a finished run."""
    first = gathered.campaigns[plan.arms[0].name]
    world, dataset = first.arm.world, first.arm.setting.dataset
    metric = metric_of(first.arm)
    virtual = world.fleet.num_virtual
    return Summary(
        experiment=plan.config.name,
        started_at=started.isoformat(timespec="seconds"),
        metric=metric,
        metric_unit="" if metric is Metric.ACCURACY or dataset is None else _unit(dataset.target_name),
        dataset=dataset.name if dataset is not None else "generated",
        num_devices=world.fleet.num_devices,
        num_virtual_devices=virtual,
        seeds=plan.seeds,
        seconds=seconds,
        environment=environment(),
        data_digest=dataset.digest if dataset is not None else world.fleet.digest,
        config_digest=checkpoint.config_digest(plan.config),
        caveats=(*_caveats(first, virtual), *_untrained(plan, gathered)),
        arms=tuple(
            summarise_arm(
                ArmFacts(
                    arm=planned.name,
                    title=planned.title,
                    method=str(planned.config.personalization.kind),
                    privacy=privacy_summary(gathered.campaigns[planned.name]),
                    example_epsilon=gathered.example_epsilons.get(planned.name),
                    peak_memory_bytes=gathered.peak_bytes,
                    weights_digests=gathered.digests[planned.name],
                ),
                gathered.rounds,
                gathered.scores,
                metric,
            )
            for planned in plan.arms
        ),
    )


def privacy_summary(campaign: Campaign) -> PrivacySummary | None:
    """The DP figure of one arm, recomputed from its ledger; None without DP."""
    config, rules = campaign.arm.config, campaign.rules
    if config.privacy.kind is PrivacyKind.NONE or campaign.purse is None or rules.rounds.dp is None:
        return None
    epsilon = campaign.epsilon() or 0.0
    events = campaign.progress.events
    return PrivacySummary(
        epsilon=epsilon,
        delta=rules.delta,
        sampling=str(config.campaign.sampling),
        relation=str(config.privacy.relation),
        unit=str(config.privacy.unit),
        accountant="pld",
        noise_multiplier=rules.rounds.dp.noise_multiplier,
        clip_norm=config.privacy.clip_norm,
        scope=scope_text(epsilon, rules.delta, events),
        target_epsilon=config.privacy.target_epsilon or None,
        advice="" if rules.advice is None or rules.advice.enough else rules.advice.text,
    )


def _caveats(campaign: Campaign, virtual: int) -> tuple[str, ...]:
    arm = campaign.arm
    dataset, fleet = arm.setting.dataset, arm.world.fleet
    own = dataset.caveats if dataset is not None else ("the data are synthetic: Gaussian classes",)
    more = []
    if virtual and dataset is not None:
        more.append(
            f"{virtual} of {fleet.num_devices} devices are virtual: made from the real signals, after the time split, by "
            "re-mounting, gain and noise; they are scored apart from the real ones, and an epsilon counts each as a device "
            "of its own: it does not protect the people whose signals many of them share"
        )
    if dataset is not None and arm.config.dataset.split == "random":
        more.append("the split is random: scored samples have neighbours in time among the trained ones")
    if fleet.pipeline.has_local:
        more.append(
            "every model, the global one included, reads inputs scaled by the device's own past (the whole of it, in early "
            "rounds too): personal state that never leaves it"
        )
    if arm.config.campaign.sampling is Sampling.POISSON:
        more.append("Poisson cohorts: amplification holds only while cohorts and counts stay secret")
    return (*own, *more)


def _untrained(plan: Plan, gathered: Gathered) -> list[str]:
    """Arms of which no round was ever released, and why not: their figures are those of an untrained model."""
    said = []
    for planned in plan.arms:
        own = [record for record in gathered.rounds if record.arm == planned.name]
        if any(record.outcome is Outcome.COMMITTED for record in own):
            continue
        failures = Counter[str]()
        for record in own:
            failures.update(record.failures)
        kinds = (
            ", ".join(f"{count} {kind}" for kind, count in failures.most_common()) or "nobody could be asked"
        )
        said.append(f"{planned.title}: no round was released, so nothing was trained ({kinds})")
    return said


def environment() -> Environment:
    """Where this process runs."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Environment(
        code_version=code_version(),
        python=platform.python_version(),
        packages=versions,
        cores=len(os.sched_getaffinity(0)),
        platform=f"{platform.system()} {platform.machine()}",
    )


def code_version() -> str:
    """`git describe` of a checkout, else the installed version."""
    root = Path(fedretrain.__file__).resolve().parent.parent
    installed = metadata.version("fedretrain")
    if not (root / ".git").exists():
        return installed
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--tags"],  # noqa: S607 - git where the user has it
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{installed}+{found.stdout.strip()}" if found.returncode == 0 else installed


def peak_memory_bytes(pool: Pool) -> int:
    """Peak resident memory of this process and of its workers."""
    return own_peak_bytes() + sum(pool.peak_memory_bytes())


def own_peak_bytes() -> int:
    """Peak resident memory of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _unit(target: str) -> str:
    """The unit in ``PM2.5 (ug/m3)``; empty if there is none."""
    return target[target.index("(") + 1 : -1] if target.endswith(")") and "(" in target else ""
