"""Hit and NDCG with one target a ranking (methods.md 5e), and their intervals and tests over users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lsat_ray.errors import LsatError
from lsat_ray.evaluation import resampling

CUTS = (5, 10)
FIELDS = ("hit5", "hit10", "ndcg5", "ndcg10")


def ranking_metrics(above: np.ndarray, ties: np.ndarray | int = 1) -> dict[str, np.ndarray]:
    """Return Hit@5, Hit@10, NDCG@5 and NDCG@10 of each target, float64 [N].

    NDCG of a target in place p is 1 / log2(p + 1) up to the cut, else 0. A target that shares its score with others is
    in each of their places with the same probability, and the metric is the expectation.

    Args:
        above: int [N], candidates that rank strictly above the target; negative where it was not found at all.
        ties: candidates of the target's own score, itself included.

    Raises:
        LsatError: when a target does not tie with itself.
    """
    above = np.asarray(above, dtype=np.int64)
    ties = np.broadcast_to(np.asarray(ties, dtype=np.int64), above.shape)
    if (ties < 1).any():
        raise LsatError("metrics: a target ties with itself at least; pass ties of 1 or more")
    found: dict[str, np.ndarray] = {}
    for name, gain in (("hit", np.ones(max(CUTS))), ("ndcg", 1 / np.log2(np.arange(max(CUTS)) + 2))):
        total = np.r_[0.0, np.cumsum(gain)]
        for cut in CUTS:
            low = np.clip(above, 0, cut)
            value = (total[np.clip(above + ties, 0, cut)] - total[low]) / ties
            found[f"{name}{cut}"] = np.where(above < 0, 0.0, value)
    return {field: found[field] for field in FIELDS}


def above_target(leaves: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return how many returned leaves stand before the target's, int64 [N]; -1 where it is not among them.

    Args:
        leaves: int [N, W], best first; -1 for none.
        target: int [N].
    """
    hit = leaves == target[:, None]
    return np.where(hit.any(axis=1), hit.argmax(axis=1), -1)


def above_items(leaves: np.ndarray, target: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `above` and `ties` counted in items rather than semantic IDs: those of one leaf share their score.

    Args:
        leaves: int [N, W], best first; -1 for none.
        target: int [N], the target's leaf.
        size: int [leaves], items of each leaf.
    """
    above = above_target(leaves, target)
    weight = np.where(leaves >= 0, size[np.maximum(leaves, 0)], 0)
    before = np.concatenate([np.zeros((len(leaves), 1), np.int64), np.cumsum(weight, axis=1)], axis=1)
    counted = np.take_along_axis(before, np.maximum(above, 0)[:, None], axis=1)[:, 0]
    return np.where(above < 0, -1, counted), size[target]


def interval(
    values: Sequence[np.ndarray], users: Sequence[np.ndarray], resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Return the bootstrap interval over users of the mean over periods of each period's mean.

    A draw reweights every period alike, so a user's rows stay together. Differences of two strategies on the same rows
    may be given as values: that is the paired bootstrap.

    Args:
        values: for each period, [N] (averaged over seeds).
        users: for each period, [N].
        resamples: draws.
        seed: of the draws.
        level: of the interval.
    """
    names = np.unique(np.concatenate(users))
    rng = np.random.default_rng(seed)
    places = [np.searchsorted(names, u) for u in users]
    total = [np.bincount(p, v, minlength=len(names)) for p, v in zip(places, values, strict=True)]
    count = [np.bincount(p, minlength=len(names)) for p in places]
    means = np.empty(resamples)
    for draw in range(resamples):
        weight = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
        with np.errstate(invalid="ignore"):
            means[draw] = np.nanmean([(t @ weight) / (c @ weight) for t, c in zip(total, count, strict=True)])
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(differences: Sequence[np.ndarray], users: Sequence[np.ndarray], draws: int = 2000, seed: int = 0) -> float:
    """Return the two-sided p-value of the mean over periods: two strategies swap places for random users.

    A user's rows swap together in all periods; the smallest value is 1 / (draws + 1).

    Args:
        differences: for each period, [N], one strategy minus the other.
        users: for each period, [N].
        draws: of the swaps.
        seed: of the draws.
    """
    names = np.unique(np.concatenate(users))
    own = np.zeros(len(names))
    for value, who in zip(differences, users, strict=True):
        own += np.bincount(np.searchsorted(names, who), value, minlength=len(names)) / len(value) / len(users)
    return resampling.p_value(float(own.sum()), resampling.swapped(own, draws, seed))[0]
