"""The simulation gate as a child job: started, watched, ended at its limits, its verdict kept.

Rules of this file:
    * PASS and FAIL are the gate's own: its exit status and its report say the same, or there is no verdict.
    * A job that cannot run, crashes, takes too long or too much memory is INCONCLUSIVE, with the reason; it is repeated after
      `SimulationRules.retry_s`, as long as the rollout waits.
    * A job's files are its owner's to read, and are deleted when it ends; its report is in the store, its log stays.
    * A coordinator that ends takes its job with it. Another one finds that the job began and did not end, and repeats it: nothing that the
      first one might have found is counted.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.core.child import Child, Command, last_line
from fedretrain.core.errors import ConfigError
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.verdict import Verdict
from fedretrain.server.keys import store_places
from fedretrain.server.simulation_child import REPORT, SimulationOrders
from fedretrain.validation.report import Verdict as Validated

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.coordinator.cycle import CycleState
    from fedretrain.coordinator.policy import Policy
    from fedretrain.rollout.simulation import SimulationRules
    from fedretrain.server.config import ServerConfig
    from fedretrain.server.population import Population
    from fedretrain.server.simulations import SimulationBook
    from fedretrain.server.validations import Validations

_STATUS = {0: Verdict.PASS, 1: Verdict.FAIL, 3: Verdict.INCONCLUSIVE}
_NICENESS = 10  # devices and decisions come first
LOG = "log"
_log = logging.getLogger(__name__)


def check_pool(policy: Policy, pool: str, where: str) -> None:
    """Refuse a population whose simulation gate could never run.

    Raises:
        ConfigError: If it is required and there are no rows to simulate devices with.
    """
    if policy.rollout.simulation.required and not pool:
        raise ConfigError(
            "the policy requires the simulation gate, and there are no labelled rows to make devices of",
            where=where,
            fix="name a pool, or set rollout.simulation.required to false",
        )


def to_simulate(state: CycleState | None, validations: Validations) -> int | None:
    """The version whose simulation is due: its rollout waits, and its validation has passed."""
    rollout = None if state is None else state.rollout
    if rollout is None or rollout.phase is not Phase.PENDING or not rollout.plan.simulation:
        return None
    judged = validations.judged.get(rollout.plan.candidate)
    passed = (
        judged is not None and judged.champion == rollout.plan.champion and judged.verdict == Validated.PASS
    )
    return rollout.plan.candidate if passed else None


class Simulating:
    """The jobs of one population; one runs at a time. Mutable.

    Args:
        rules: Limits.
        book: Where verdicts are kept.
        orders: Says what a job of a version needs, given its folder.
        folder: Below which jobs have theirs.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        rules: SimulationRules,
        book: SimulationBook,
        orders: Callable[[int, Path], SimulationOrders],
        folder: Path,
        clock: Callable[[], float],
    ) -> None:
        self._rules, self.book, self._orders = rules, book, orders
        self._folder, self._clock = folder, clock
        self._version: int | None = None
        self._child: Child | None = None
        self._begun_at = 0.0

    @property
    def pid(self) -> int | None:
        """Of the job; None if none runs."""
        return None if self._child is None else self._child.pid

    def ensure(self, version: int | None, now: float, rollout: str = "") -> None:
        """Start, watch or end the job. Call it every second or so.

        Args:
            version: Whose simulation is due; None: nobody's.
            now: Monotonic instant, seconds.
            rollout: Of which rollout.
        """
        if version is None or version != self._version:
            self.stop()
        if version is None:
            return
        if self._child is None:
            self._start_if_due(version, now, rollout)
        elif not self._child.is_alive:
            self._ended(version, *self._read())
        elif now - self._begun_at > self._rules.max_s:
            self._ended(version, Verdict.INCONCLUSIVE, f"it took longer than {self._rules.max_s:g} s", None)

    def stop(self) -> None:
        """End the job without a verdict; it is repeated. May be called twice."""
        if self._child is not None and self._version is not None:
            self._child.stop()
            _tidy(self._job_folder(self._version))
            self._child, self._version = None, None

    def _start_if_due(self, version: int, now: float, rollout: str) -> None:
        known = self.book.of(version, rollout)
        if known.ended_at is not None and not known.running:
            waited = self._clock() - known.ended_at
            if known.verdict is not Verdict.INCONCLUSIVE or waited < self._rules.retry_s:
                return
        folder = self._job_folder(version)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _tidy(folder)
        orders = self._orders(version, folder)
        attempt = self.book.begin(version, rollout)
        command = Command(
            ("-m", "fedretrain.server.simulation_child"),
            folder / LOG,
            {**orders.to_env(), "OMP_NUM_THREADS": "1"},
            memory_bytes=self._rules.memory_bytes,
            niceness=_NICENESS,
        )
        (folder / LOG).unlink(missing_ok=True)
        self._child, self._version, self._begun_at = Child(command), version, now
        self._child.start()
        _log.info("version %d is simulated (attempt %d)", version, attempt)

    def _ended(self, version: int, verdict: Verdict, reason: str, report: dict[str, Any] | None) -> None:
        self.stop()
        self.book.end(version, verdict, reason, report)
        _log.info("the simulation of version %d: %s %s", version, verdict.upper(), reason)

    def _read(self) -> tuple[Verdict, str, dict[str, Any] | None]:
        """What the job that ended says."""
        assert self._child is not None
        assert self._version is not None
        # A Python that dies of an exception has the exit status of a FAIL: without a report it is no verdict.
        folder, status = self._job_folder(self._version), self._child.exit_status
        if status not in _STATUS or not (folder / REPORT).exists():
            how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
            return (
                Verdict.INCONCLUSIVE,
                f"it ended with {how} and no verdict: {last_line(folder / LOG)}",
                None,
            )
        try:
            report = json.loads((folder / REPORT).read_text())
            said = Verdict(report["verdict"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            return Verdict.INCONCLUSIVE, f"its report cannot be read: {error}", None
        if said is not _STATUS[status]:
            return Verdict.INCONCLUSIVE, f"its report says {said}, its exit status {_STATUS[status]}", None
        return said, _because(report), report

    def _job_folder(self, version: int) -> Path:
        return self._folder / str(version)


def simulating_of(
    config: ServerConfig, name: str, population: Population, clock: Callable[[], float]
) -> Simulating:
    """The jobs of a population of a coordinator.

    Args:
        config: ``server.toml``.
        name: Of the population.
        population: Its loop.
        clock: Seconds since the epoch.
    """
    folder, models = Path(config.folder), population.models
    rules = population.policy.rollout.simulation
    packages, campaigns = store_places(config)

    def orders(version: int, job: Path) -> SimulationOrders:
        champion = population.memory.begun.champion
        bins = models.bins(champion)
        return SimulationOrders(
            database=config.database_url,
            packages=packages,
            campaigns=campaigns,
            population=name,
            campaign=models.campaign_of(version),
            champion=champion,
            pool=config.populations[name].pool,
            folder=str(job),
            rules=rules,
            bins_features=0 if bins is None else bins.num_features,
            bins_cells=0 if bins is None else bins.num_cells,
            address=config.simulation.address,
        )

    return Simulating(rules, models.simulations, orders, folder / "simulations" / name, clock)


def _tidy(folder: Path) -> None:
    """Leave nothing of a job but its log: weights and labelled rows lie in the clear only while it runs."""
    for file in folder.iterdir():
        if file.name != LOG:
            file.unlink()


def _because(report: dict[str, Any]) -> str:
    """One line for people: what did not pass, or how much did."""
    checks = report.get("checks", [])
    wrong = [f"{one['name']}, {one['condition']}" for one in checks if one["verdict"] != Verdict.PASS]
    return "; ".join(wrong) or f"{len(checks)} checks passed"
