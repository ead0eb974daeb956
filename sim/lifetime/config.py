"""What a simulated lifetime is made of. See `sim.schema`."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedretrain.core.checks import as_tuples, fraction, not_negative, positive, require
from fedretrain.core.clock import DAY_S, HOUR_S


@dataclass(frozen=True)
class LifetimeConfig:
    """How long a fleet lives, and what its devices and its coordinator do meanwhile.

    Attributes:
        duration_s: Virtual seconds of life; 0: the experiment is a single campaign, no lifetime.
        tick_s: The clock's step, and the telemetry's slot.
        policy: A policy file, or the name of a shipped one.
        policies: Retraining modes (or further policy files) that live side by side on the same fleet and seeds.
        initial_rounds: Rounds that make the first champion, before the life begins.
        retrain_rounds: Rounds of each later campaign.
        round_interval_s: Virtual seconds between the rounds of a campaign.
        campaign_max_s: After so long a campaign is given up, as a training file's `max_s` says in production.
        baseline_s: The end of the history, from which the first champion's baseline comes.
        baseline_held_out: Whether the first champion is not trained on it. Where a history is too short for that, the
            baseline's accuracy is of rows that it was trained on, and flatters it.
        settle_s: So long a new champion serves before its predictions and labels are judged, by a baseline made of that time.
            Inputs are judged all the while.
        record_s: How devices are, by which a single broken one is told, is taken anew so long after a promotion; until then it
            is what it was before.
        inputs_s: Where inputs have moved, a new champion's are compared with those of so long a time before its promotion,
            whoever served then: with a year of them no season is a drift. 0: of as long as `settle_s`.
        segments: Named parts of the life, each from an instant to an instant; empty: quarters.
        buffer_s: How long a device keeps a labelled sample.
        buffer_rows: How many it keeps at most.
        holdout_every: Every so manieth row of a device is kept for validation and never trained on; 0: candidates are
            validated on rows that they may have been trained on, which the report says.
        pool_devices: The first so many devices have consented: their labelled rows are copied to the server, where
            `full` and `incremental` train on them.
        validation_s: Candidates are validated on labelled rows of so long a time; 0: of as long as a buffer holds them. Rows
            from before a drift speak for the old model.
        online_lr: Learning rate of a step of online learning.
        span_ticks: Ticks predicted at once (speed; nothing else depends on it).
        bad_margin: A device-day is *badly served* if the device's accuracy over the last three days lies so far below its
            own record from the first week of its life (without one: the fleet's).
        scored_from_s: Rows before this instant are not counted in the summary's accuracy.
    """

    duration_s: float = 0.0
    tick_s: float = HOUR_S
    policy: str = "default"
    policies: tuple[str, ...] = ("hybrid",)
    initial_rounds: int = 30
    retrain_rounds: int = 10
    round_interval_s: float = HOUR_S
    campaign_max_s: float = 2 * DAY_S
    baseline_s: float = 2 * DAY_S
    baseline_held_out: bool = True
    settle_s: float = 3 * DAY_S
    record_s: float = 14 * DAY_S
    inputs_s: float = 0.0
    segments: dict[str, tuple[float, float]] = field(default_factory=dict)
    buffer_s: float = 30 * DAY_S
    buffer_rows: int = 1000
    holdout_every: int = 5
    pool_devices: int = 0
    online_lr: float = 0.05
    validation_s: float = 0.0
    span_ticks: int = 24
    bad_margin: float = 0.1
    scored_from_s: float = 0.0

    def __post_init__(self) -> None:
        as_tuples(self, ["policies"])
        for name in (
            "duration_s",
            "baseline_s",
            "scored_from_s",
            "holdout_every",
            "settle_s",
            "record_s",
            "validation_s",
            "inputs_s",
            "pool_devices",
        ):
            not_negative(f"lifetime.{name}", getattr(self, name))
        for name in ("tick_s", "round_interval_s", "campaign_max_s", "buffer_s", "online_lr"):
            positive(f"lifetime.{name}", getattr(self, name))
        for name in ("initial_rounds", "retrain_rounds", "buffer_rows", "span_ticks"):
            require(getattr(self, name) >= 1, "must be at least 1", key=f"lifetime.{name}")
        fraction("lifetime.bad_margin", self.bad_margin)
        require(
            bool(self.policies), "name at least one policy", key="lifetime.policies", fix="policies=[hybrid]"
        )

    @property
    def num_ticks(self) -> int:
        """Whole ticks of the life."""
        return round(self.duration_s / self.tick_s)

    def segments_of(self, duration_s: float) -> dict[str, tuple[float, float]]:
        """The named parts of the life."""
        quarter = duration_s / 4
        return self.segments or {f"quarter {k + 1}": (k * quarter, (k + 1) * quarter) for k in range(4)}
