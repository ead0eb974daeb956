"""Online learning on a leash: anchored to the champion, watched sample by sample, taken back when it leaves its band.

Rules of this file:
    * Nothing here trains: gradients, losses and distances arrive, a step's place or an event is handed back.
    * Losses are prequential (each sample is scored before it is learnt from) and paired with the champion's on the same
      sample: what makes samples harder for both is no reason to revert.
    * Evidence of harm is an e-detector, so that the false-revert rate holds for dependent samples and at any look.
    * After a revert the parameters are the champion's; learning rests, and after a few reverts it stops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.retraining.config import OnlineGuard

BETS = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)
"""Stakes, as shares of the largest that cannot lose everything. The best one is about excess / variance of the
differences, which is not known beforehand; six octaves lose at most log 6 of evidence against the best of them."""


class OnlineStatus(StrEnum):
    """Whether the model learns, rests after a revert, or was stopped."""

    LEARNING = "learning"
    RESTING = "resting"
    STOPPED = "stopped"


class RevertReason(StrEnum):
    """What left its band."""

    LOSS = "loss"
    DISTANCE = "distance"
    NOT_FINITE = "not_finite"


@dataclass(frozen=True)
class OnlineEvidence:
    """What happened since the last look, N samples in the order in which they were learnt (N may be 0).

    Attributes:
        loss_N: The online model's loss on each sample before it learnt from it.
        champion_loss_N: The champion's loss on the same samples.
        distance: Euclidean distance of its parameters from the champion's, now.

    Raises:
        DataError: If the two losses are not of the same samples.
    """

    loss_N: NDArray[np.floating[Any]]
    champion_loss_N: NDArray[np.floating[Any]]
    distance: float

    def __post_init__(self) -> None:
        if self.loss_N.ndim != 1 or self.loss_N.shape != self.champion_loss_N.shape:
            raise DataError(
                f"losses of shape {self.loss_N.shape} beside the champion's {self.champion_loss_N.shape}",
                where="online evidence",
                fix="score every sample with both models",
            )


@dataclass(frozen=True)
class OnlineState:
    """What the guard remembers.

    Attributes:
        status: Whether the model learns.
        log_wealth: One running log evidence of harm for each of `BETS`.
        num_samples: Samples since learning began, or began again.
        excess: Sum of the cut differences of losses over them.
        distance: The last distance from the champion.
        num_reverts: Reverts since this champion began to serve.
        reverted_at: When the last was.
    """

    status: OnlineStatus = OnlineStatus.LEARNING
    log_wealth: tuple[float, ...] = (0.0,) * len(BETS)
    num_samples: int = 0
    excess: float = 0.0
    distance: float = 0.0
    num_reverts: int = 0
    reverted_at: float | None = None


@dataclass(frozen=True)
class Watched:
    """Samples were looked at and nothing left its band.

    Attributes:
        log_wealth: The new evidence.
        num_samples: So many samples.
        excess: Sum of their cut differences.
        distance: Where the model is now.
    """

    log_wealth: tuple[float, ...]
    num_samples: int
    excess: float
    distance: float


@dataclass(frozen=True)
class Reverted:
    """The online model goes back to the champion's parameters.

    Attributes:
        at: When.
        why: What left its band.
        reason: A sentence for people.
        is_last: Whether learning stops until there is another champion.
    """

    at: float
    why: RevertReason
    reason: str
    is_last: bool


@dataclass(frozen=True)
class Resumed:
    """The rest is over: learning begins again from the champion's parameters."""


OnlineEvent = Watched | Reverted | Resumed


def anchored_step(
    guard: OnlineGuard,
    params_P: NDArray[np.float64],
    champion_P: NDArray[np.float64],
    gradient_P: NDArray[np.float64],
    lr: float,
) -> NDArray[np.float64]:
    """Parameters after one gradient step that is tied to the champion and no longer than the cap, ``[P]``.

    The proximal term mu/2 |w - champion|^2 (FedProx, arXiv:1812.06127) is taken implicitly, so no learning rate makes
    it overshoot: w' - champion = (w - champion - lr g) / (1 + lr mu). With gradients up to G a model that starts at the
    champion therefore stays within G / mu of it; cutting the step keeps that, a cut step being on the way to w'.

    Args:
        guard: Weight of the term and the cap.
        params_P: Where the online model is.
        champion_P: The champion's parameters.
        gradient_P: Gradient of the sample's loss at `params_P`.
        lr: Learning rate.
    """
    target_P = champion_P + (params_P - champion_P - lr * gradient_P) / (1.0 + lr * guard.proximal)
    step_P = target_P - params_P
    factor = step_factor(guard, float(np.linalg.norm(step_P)))
    return params_P + step_P * factor if factor else params_P.copy()


def step_factor(guard: OnlineGuard, norm: float) -> float:
    """What a step of this norm is multiplied with; a step that is no number is not taken."""
    if not math.isfinite(norm):
        return 0.0
    return 1.0 if norm <= guard.max_step else guard.max_step / norm


def decide(
    guard: OnlineGuard, state: OnlineState, evidence: OnlineEvidence, now: float
) -> tuple[OnlineEvent, ...]:
    """What follows from the evidence.

    The test of the loss: bets on the cut difference d of the paired losses, M_t = max(M_{t-1}, 1) (1 + b (d_t - margin)),
    averaged over `BETS`. As long as the conditional mean of d is within the margin this is an e-detector (Shin, Ramdas,
    Rinaldo, arXiv:2203.03532): the mean number of samples until it reaches A is at least A, for whatever dependence.

    Args:
        guard: The limits.
        state: What was seen before.
        evidence: Losses and distance; of no account while the model does not learn.
        now: The instant, in seconds.
    """
    if state.status is OnlineStatus.STOPPED:
        return ()
    if state.status is OnlineStatus.RESTING:
        rested = state.reverted_at is None or now - state.reverted_at >= guard.rest_s
        return (Resumed(),) if rested else ()
    losses = (evidence.loss_N, evidence.champion_loss_N)
    if not (math.isfinite(evidence.distance) and all(np.all(np.isfinite(loss_N)) for loss_N in losses)):
        return (_revert(guard, state, now, RevertReason.NOT_FINITE, "A loss or the distance is no number."),)
    if evidence.distance > guard.max_distance:
        said = f"Distance {evidence.distance:.3g} from the champion, {guard.max_distance:.3g} is allowed."
        return (_revert(guard, state, now, RevertReason.DISTANCE, said),)
    return _judge_losses(guard, state, evidence, now)


def _judge_losses(
    guard: OnlineGuard, state: OnlineState, evidence: OnlineEvidence, now: float
) -> tuple[OnlineEvent, ...]:
    difference_N = evidence.loss_N.astype(np.float64) - evidence.champion_loss_N.astype(np.float64)
    cut_N = np.clip(difference_N, -guard.loss_range, guard.loss_range)
    wealth_NG = log_wealth(guard, np.array(state.log_wealth), cut_N)
    last = tuple(float(wealth) for wealth in wealth_NG[-1])
    watched = Watched(last, cut_N.size, float(cut_N.sum()), evidence.distance)
    limit = math.log(guard.mean_samples_to_false_revert)
    if not cut_N.size or float(np.max(_log_mean(wealth_NG[1:]))) < limit:
        return (watched,)
    num = state.num_samples + watched.num_samples
    said = (
        f"Evidence above {guard.mean_samples_to_false_revert:g} to 1 that the loss now exceeds the champion's by more "
        f"than {guard.loss_margin:.3g}; by {(state.excess + watched.excess) / num:+.3g} over all {num} samples."
    )
    return (watched, _revert(guard, state, now, RevertReason.LOSS, said))


def log_wealth(
    guard: OnlineGuard, before_G: NDArray[np.float64], cut_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``[N + 1, G]`` log evidence before the first and after each of N samples, for each bet.

    L_t = max(L_{t-1}, 0) + x_t is a walk less its lowest point so far below zero: two scans instead of a loop.
    """
    stake_G = np.array(BETS) / (guard.loss_range + guard.loss_margin)
    gain_NG = np.log1p(stake_G * (cut_N[:, None] - guard.loss_margin))
    walk_NG = before_G + np.vstack([np.zeros_like(before_G), np.cumsum(gain_NG, axis=0)])
    lowest_NG = np.minimum(np.minimum.accumulate(walk_NG, axis=0), 0.0)
    return np.vstack([walk_NG[:1], walk_NG[1:] - lowest_NG[:-1]])


def _log_mean(log_NG: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[N]`` log of the mean of exp over the bets, without overflow."""
    peak_N = np.max(log_NG, axis=1)
    mean_N: NDArray[np.float64] = peak_N + np.log(np.mean(np.exp(log_NG - peak_N[:, None]), axis=1))
    return mean_N


def _revert(guard: OnlineGuard, state: OnlineState, now: float, why: RevertReason, reason: str) -> Reverted:
    return Reverted(now, why, reason, state.num_reverts + 1 >= guard.max_reverts)


def apply(state: OnlineState, event: OnlineEvent) -> OnlineState:
    """The state after an event.

    Raises:
        DataError: If the event cannot follow: a model that does not learn is watched or reverted, or one that does not
            rest goes on.
    """
    needed = OnlineStatus.RESTING if isinstance(event, Resumed) else OnlineStatus.LEARNING
    if state.status is not needed:
        raise DataError(
            f"{type(event).__name__} while {state.status.value}",
            where="online learning",
            fix="apply each event to the state it was decided from",
        )
    if isinstance(event, Watched):
        return replace(
            state,
            log_wealth=event.log_wealth,
            num_samples=state.num_samples + event.num_samples,
            excess=state.excess + event.excess,
            distance=event.distance,
        )
    if isinstance(event, Reverted):
        status = OnlineStatus.STOPPED if event.is_last else OnlineStatus.RESTING
        return OnlineState(status, num_reverts=state.num_reverts + 1, reverted_at=event.at)
    return OnlineState(num_reverts=state.num_reverts, reverted_at=state.reverted_at)
