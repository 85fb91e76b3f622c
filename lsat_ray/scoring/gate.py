"""Gates that mix two adapters' outputs sample by sample, after RecLoRA (arXiv 2408.03533; methods.md 6).

RecLoRA mixes N meta-LoRAs with `alpha = softmax(g(h))`, h what a frozen conventional recommender says of the sample.
Here N is 2, the members are LSAT's long- and short-term adapters, already trained, and h is what they say themselves:
their margins and how sure each is. So the gate needs no second model when it serves, and g is linear, for it is fitted
on the few hundred rows of V_t (`fit_gate`). `fit_sample_gate` takes what is known of user and item besides, from all
rows behind. Either standardises its features on the rows that it is fitted on, and chooses its penalty on the newest of
them. All of it is NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsat_ray.errors import LsatError

FEATURES = 5
"""Numbers in h, and weights of the gate."""
PULLS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
"""Penalties that `fit_sample_gate` tries; under the last the weight hardly differs between samples."""


def features(margin: Sequence[np.ndarray]) -> np.ndarray:
    """Return h, float64 [N, 5]: one, both margins and both absolute margins."""
    first, second = (np.asarray(m, dtype=np.float64) for m in margin)
    return np.stack([np.ones_like(first), first, second, np.abs(first), np.abs(second)], axis=1)


def expit(x: Any) -> np.ndarray:
    """Return the logistic function of x; every process of a run imports this file, and few of them need scipy."""
    from scipy import special

    return np.asarray(special.expit(x))


def gated(margin: Sequence[np.ndarray], weight: Sequence[float]) -> np.ndarray:
    """Return P(like) float64 [N]: the first member's with weight sigmoid(w h), the second's with the rest.

    Args:
        margin: the two members' margins, aligned row by row.
        weight: the gate's 5 weights; all zero averages the members.

    Raises:
        LsatError: for other than two members or five weights.
    """
    if len(margin) != 2 or len(weight) != FEATURES:
        raise LsatError(f"gate: two members and {FEATURES} weights are needed, {len(margin)} and {len(weight)} given")
    share = expit(features(margin) @ np.asarray(weight, dtype=np.float64))
    first, second = (expit(np.asarray(m, dtype=np.float64)) for m in margin)
    return np.asarray(share * first + (1.0 - share) * second)


def fit_gate(margin: Sequence[np.ndarray], label: np.ndarray) -> tuple[float, ...]:
    """Return the 5 weights of `gated`, fitted by log-loss on standardised features as `fit_sample_gate` does.

    Args:
        margin: the two members' margins on V_t, in the order of the stream.
        label: 0 or 1, [N].

    Raises:
        LsatError: when there are no rows.
    """
    gate = fit_sample_gate(margin, features(margin)[:, 1:], label, np.arange(len(label)))
    weight = gate.weight / gate.scale
    return (float(gate.intercept - weight @ gate.centre), *map(float, weight))


@dataclass(frozen=True)
class SampleGate:
    """A fitted gate over user and item features: the first member's weight is sigmoid(w . (x - centre) / scale + c)."""

    weight: np.ndarray
    """float64 [F], of the standardised features."""
    intercept: float
    """c; alone it is one alpha for all samples."""
    centre: np.ndarray
    scale: np.ndarray
    pull: float
    """Penalty on the squared weights, the intercept's apart."""

    def share(self, x: np.ndarray) -> np.ndarray:
        """Return the first member's weight for features [N, F], float64 [N]."""
        return np.asarray(expit((x - self.centre) / self.scale @ self.weight + self.intercept))

    def mixed(self, margin: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
        """Return P(like), float64 [N]."""
        share = self.share(x)
        first, second = (expit(np.asarray(m, dtype=np.float64)) for m in margin)
        return np.asarray(share * first + (1.0 - share) * second)


def fit_sample_gate(
    margin: Sequence[np.ndarray], x: np.ndarray, label: np.ndarray, row: np.ndarray, pulls: Sequence[float] = PULLS
) -> SampleGate:
    """Fit a gate by log-loss; its penalty is the one under which the newest quarter, left out, is likeliest.

    Args:
        margin: the two members' margins on rows that neither was trained on, [N] each.
        x: features, float [N, F]; without columns (F = 0) the gate is one alpha.
        label: 0 or 1, [N].
        row: place in the stream, [N]: what is newest.
        pulls: penalties to try, the first of equals wins.

    Raises:
        LsatError: when there are no rows.
    """
    if len(label) == 0:
        raise LsatError("gate: there are no rows to fit on")
    margin, label = [np.asarray(m, dtype=np.float64) for m in margin], np.asarray(label, dtype=np.float64)
    new = row > np.quantile(row, 0.75)
    pull = pulls[0]
    if x.shape[1] and new.any() and len(pulls) > 1:
        tried = [_sample_gate([m[~new] for m in margin], x[~new], label[~new], one) for one in pulls]
        pull = pulls[int(np.argmin([_log_loss(g.mixed([m[new] for m in margin], x[new]), label[new]) for g in tried]))]
    return _sample_gate(margin, x, label, pull)


def _sample_gate(margin: Sequence[np.ndarray], x: np.ndarray, label: np.ndarray, pull: float) -> SampleGate:
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale < 1e-9] = 1.0
    h = np.column_stack([np.ones(len(x)), (x - centre) / scale])
    found = _fitted(h, margin, label, np.r_[0.0, np.full(x.shape[1], pull)])
    return SampleGate(found[1:], float(found[0]), centre, scale, pull)


def _fitted(h: np.ndarray, margin: Sequence[np.ndarray], label: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """Return the weights of h [N, F] of the first member's share, by log-loss plus `pull` [F] times their squares."""
    y = np.asarray(label, dtype=np.float64)
    first, second = (expit(np.asarray(m, dtype=np.float64)) for m in margin)

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        share = expit(h @ weight)
        p = np.clip(share * first + (1.0 - share) * second, 1e-12, 1.0 - 1e-12)
        slope = (p - y) / (p * (1.0 - p)) * (first - second) * share * (1.0 - share)
        return _log_loss(p, y) + pull @ weight**2, h.T @ slope / len(y) + 2.0 * pull * weight

    from scipy.optimize import minimize

    return np.asarray(minimize(loss, np.zeros(h.shape[1]), jac=True, method="L-BFGS-B").x)


def _log_loss(p: np.ndarray, y: np.ndarray) -> float:
    p = np.clip(p, 1e-12, 1.0 - 1e-12)
    return float(-np.mean(y * np.log(p) + (1.0 - y) * np.log1p(-p)))
