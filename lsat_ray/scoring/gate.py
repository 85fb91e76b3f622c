"""A gate that mixes two adapters' outputs sample by sample, after RecLoRA (arXiv 2408.03533; methods.md 6).

RecLoRA mixes N meta-LoRAs with `alpha = softmax(g(h))`, h what a frozen conventional recommender says of the sample.
Here N is 2, the members are LSAT's long- and short-term adapters, already trained, and h is what they say themselves:
their margins and how sure each is. So the gate needs no second model when it serves, and g is linear, for it is fitted
on the few hundred rows of V_t. All of it is NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from lsat_ray.errors import LsatError

FEATURES = 5
"""Numbers in h, and weights of the gate."""


def features(margin: Sequence[np.ndarray]) -> np.ndarray:
    """Return h, float64 [N, 5]: one, both margins and both absolute margins."""
    first, second = (np.asarray(m, dtype=np.float64) for m in margin)
    return np.stack([np.ones_like(first), first, second, np.abs(first), np.abs(second)], axis=1)


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


def fit_gate(margin: Sequence[np.ndarray], label: np.ndarray, pull: float = 0.1) -> tuple[float, ...]:
    """Fit the gate by minimising the mean log-loss plus `pull` times the squared weights (L-BFGS from zero).

    Args:
        margin: the two members' margins on V_t.
        label: 0 or 1, [N].
        pull: towards the plain average of the members.

    Raises:
        LsatError: when there are no rows.
    """
    if len(label) == 0:
        raise LsatError("gate: there are no rows to fit on")
    h, y = features(margin), np.asarray(label, dtype=np.float64)
    first, second = (expit(np.asarray(m, dtype=np.float64)) for m in margin)

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        share = expit(h @ weight)
        p = np.clip(share * first + (1.0 - share) * second, 1e-12, 1.0 - 1e-12)
        value = -np.mean(y * np.log(p) + (1.0 - y) * np.log1p(-p)) + pull * weight @ weight
        slope = (p - y) / (p * (1.0 - p)) * (first - second) * share * (1.0 - share)
        return float(value), h.T @ slope / len(y) + 2.0 * pull * weight

    from scipy.optimize import minimize

    return tuple(float(w) for w in minimize(loss, np.zeros(FEATURES), jac=True, method="L-BFGS-B").x)
