"""Which classes are labelled less: the share of each class's samples whose label arrives.

A label tells the true class c and the predicted one j; of a sample without a label only j is known. If class c is labelled with the
probability p_c whatever was predicted, the L_cj labels that came stand for L_cj / p_c samples, and of each predicted class these
add up to what was served: ``sum_c L_cj / p_c = N_j``. With M classes these are M equations for the M numbers 1 / p_c, and they
have one answer where the predictions tell the classes apart.

Rules of this file:
    * Of what was served only as much is expected as could have come by now, by the fitted delay.
    * Rates are told only if they differ by more than chance, over devices; else labels are taken to be lost alike.

Source: the same equations as Lipton, Wang and Smola 2018, "Detecting and Correcting for Label Shift with Black Box Predictors",
    https://arxiv.org/abs/1802.03916

Shape letters: D devices, E stretches of predictions, M classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from fedretrain.core.build import build
from sim.fit.delay import heard_for
from sim.labels import Labels, LabelsConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.fit.delay import Delay
    from sim.fleetlog.log import FleetLog

    Floats = NDArray[np.float64]

_DRAWS = 100  # of the delay, by its quantiles
_RESAMPLES = 400
_LEVEL = 0.01  # of all classes together
_WORST_CONDITION = 100.0  # of the equations: beyond it the predictions hardly tell the classes apart


@dataclass(frozen=True)
class LabelRates:
    """How often each class is labelled.

    Attributes:
        rate_M: Share of each class's samples whose label arrives, sooner or later.
        low_M: Lower ends of their 95 % intervals over devices ...
        high_M: ... and upper ends.
        differ: Whether they differ by more than chance.
    """

    rate_M: Floats
    low_M: Floats
    high_M: Floats
    differ: bool

    @property
    def loss_fraction(self) -> float:
        """As `LabelsConfig.loss_fraction`: of the class that is labelled most."""
        return float(max(0.0, 1.0 - self.rate_M.max()))

    @property
    def class_rate(self) -> tuple[float, ...]:
        """As `LabelsConfig.class_rate`: each class beside the one that is labelled most."""
        return tuple(float(f"{one:.4g}") for one in self.rate_M / self.rate_M.max())


def fit_label_rates(log: FleetLog, delay: Delay | None) -> LabelRates | None:
    """The rates, or None where the log does not tell: no predicted classes, or predictions that tell no classes apart."""
    arrivals, num = log.arrivals, len(log.header.class_names)
    told = arrivals.predicted >= 0
    if delay is None or num < 2 or not told.any() or not log.predictions.by_class.any():
        return None
    labels_DMM = np.zeros((log.header.num_devices, num, num))
    np.add.at(labels_DMM, (arrivals.device[told], arrivals.label[told], arrivals.predicted[told]), 1.0)
    served_DM = np.zeros((log.header.num_devices, num))
    np.add.at(served_DM, log.predictions.device, log.predictions.by_class * _come(log, delay)[:, None])
    rate_M = _solved(labels_DMM.sum(axis=0), served_DM.sum(axis=0))
    if rate_M is None:
        return None
    return _judged(rate_M, labels_DMM, served_DM)


def _come(log: FleetLog, delay: Delay) -> Floats:
    """``[E]`` the share of the labels of each stretch that would have come by now, of those that ever come."""
    middle, heard_s = heard_for(log)
    draws = (np.arange(_DRAWS) + 0.5) / _DRAWS
    labels = Labels(build(LabelsConfig, delay.config(), where="labels"), 0)
    come = np.zeros(len(middle))
    for draw in draws.tolist():
        come += labels.delays(np.full(len(middle), draw), middle) <= heard_s
    return come / _DRAWS


def _solved(labels_MM: Floats, served_M: Floats) -> Floats | None:
    """``[M]`` rates; None where the equations have no answer that is a rate."""
    if (labels_MM.sum(axis=1) == 0).any() or np.linalg.cond(_shares(labels_MM)) > _WORST_CONDITION:
        return None
    inverse_M = np.linalg.solve(labels_MM.T, served_M)
    if (inverse_M <= 0).any():
        return None
    rate_M: Floats = np.minimum(1.0 / inverse_M, 1.0)
    return rate_M


def _shares(labels_MM: Floats) -> Floats:
    """What is predicted of each class."""
    shares: Floats = labels_MM / labels_MM.sum(axis=1, keepdims=True)
    return shares


def _judged(rate_M: Floats, labels_DMM: Floats, served_DM: Floats) -> LabelRates:
    """Intervals by a bootstrap over devices, and whether the rates differ."""
    num = len(served_DM)
    drawn = []
    for row in rng.uniforms(rng.seeds_for(0, -1, np.arange(_RESAMPLES), "fit.label_rates"), num):
        weight_D = np.bincount((row * num).astype(np.int64), minlength=num).astype(np.float64)
        found = _solved(np.tensordot(weight_D, labels_DMM, 1), weight_D @ served_DM)
        if found is not None:
            drawn.append(found)
    if len(drawn) < 0.9 * _RESAMPLES:
        return LabelRates(rate_M, np.zeros_like(rate_M), np.ones_like(rate_M), differ=False)
    rates = np.array(drawn)
    low_M, high_M = np.quantile(rates, [0.025, 0.975], axis=0)
    apart = np.log(rates) - np.log(rates).mean(axis=1, keepdims=True)
    tail = 0.5 * _LEVEL / len(rate_M)
    least, most = np.quantile(apart, [tail, 1.0 - tail], axis=0)
    return LabelRates(rate_M, low_M, high_M, differ=bool(((least > 0) | (most < 0)).any()))
