"""Skewed shares of devices: Dirichlet labels, lognormal quantities, counter based.

Source: Dirichlet label skew follows Hsu, Qi, Brown 2019, https://arxiv.org/abs/1909.06335.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core import rng

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_TARGET_BINS = 10


def label_bins(y: NDArray[Any]) -> NDArray[np.int64]:
    """What label skew is over: the class, or the decile of a target."""
    if np.issubdtype(y.dtype, np.integer):
        return y.astype(np.int64)
    edges = np.quantile(y, np.linspace(0.0, 1.0, _TARGET_BINS + 1)[1:-1])
    return np.searchsorted(edges, y, side="right").astype(np.int64)


def log_label_shares(seed: int, devices: NDArray[np.int64], num_bins: int, alpha: float) -> Floats:
    """Logarithms of each device's class shares: ``[K, num_bins]``, zeros (no skew) where `alpha` is 0.

    A Gamma(alpha) draw is a Gamma(alpha + 1) draw times ``u ** (1 / alpha)``, in logarithms, so that a small
    alpha (a device with one class) does not underflow.
    """
    if not alpha:
        return np.zeros((len(devices), num_bins))
    from scipy.special import gammaincinv, logsumexp

    u = rng.uniforms(rng.seeds_for(seed, -1, devices, "fleet.labels"), 2 * num_bins)
    logs = np.log(gammaincinv(alpha + 1.0, u[:, :num_bins])) + np.log(u[:, num_bins:]) / alpha
    shares: Floats = logs - logsumexp(logs, axis=1, keepdims=True)
    return shares


def quantities(seed: int, devices: NDArray[np.int64], sigma: float) -> Floats:
    """Each device's quantity relative to the fleet's mean: lognormal with mean 1, ``[K]``."""
    if not sigma:
        return np.ones(len(devices))
    z = rng.normals(rng.seeds_for(seed, -1, devices, "fleet.quantity"), 1)[:, 0]
    return np.exp(sigma * z - 0.5 * sigma * sigma)


def drawn_groups(seed: int, devices: NDArray[np.int64], count: int, purpose: str) -> NDArray[np.int64]:
    """A group from 0 to ``count - 1`` for each device (a site, a type), all equally likely: ``[K]``."""
    u = rng.uniforms(rng.seeds_for(seed, -1, devices, purpose), 1)[:, 0]
    return (u * count).astype(np.int64)
