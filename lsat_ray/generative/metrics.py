"""Hit and NDCG with one target a ranking (methods.md 5e), and their intervals and tests over users."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from lsat_ray.errors import LsatError
from lsat_ray.evaluation import resampling
from lsat_ray.evaluation.significance import RESAMPLES

CUTS = (5, 10)
CHUNK = 2048
"""Draws whose weights are held at once."""
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
    values: Sequence[np.ndarray],
    users: Sequence[np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the bootstrap interval over users of the mean over periods of each period's mean.

    A draw reweights every period alike, so a user's rows stay together; very many users are drawn in groups.
    Differences of two strategies on the same rows may be given as values: that is the paired bootstrap.

    Args:
        values: for each period, [N] (averaged over seeds).
        users: for each period, [N].
        resamples: draws.
        seed: of the draws.
        level: of the interval.
    """
    units = resampling.grouped(users)
    size = int(max(u.max() for u in units)) + 1
    total = np.array([np.bincount(u, v, minlength=size) for u, v in zip(units, values, strict=True)])
    count = np.array([np.bincount(u, minlength=size) for u in units], dtype=np.float64)
    drawn, means = _draws(size, resamples, seed), np.empty(resamples)
    for begin in range(0, resamples, CHUNK):
        weight = drawn[:, begin : begin + CHUNK].astype(np.float64)
        with np.errstate(invalid="ignore"):
            means[begin : begin + CHUNK] = np.nanmean((total @ weight) / (count @ weight), axis=0)
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@lru_cache(maxsize=2)
def _draws(users: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each user (or group of users) is in each draw; the rows of a table share their draws."""
    return resampling.user_draws(users, resamples, seed)


def p_value(
    differences: Sequence[np.ndarray], users: Sequence[np.ndarray], draws: int = RESAMPLES, seed: int = 0
) -> float:
    """Return the two-sided p-value of the mean over periods: two strategies swap places for random users.

    A user's rows swap together in all periods, very many users in groups; the smallest value is 1 / (draws + 1).

    Args:
        differences: for each period, [N], one strategy minus the other.
        users: for each period, [N].
        draws: of the swaps.
        seed: of the draws.
    """
    units = resampling.grouped(users)
    own = np.zeros(int(max(u.max() for u in units)) + 1)
    for value, unit in zip(differences, units, strict=True):
        own += np.bincount(unit, value, minlength=len(own)) / len(value) / len(units)
    return resampling.p_value(float(own.sum()), resampling.swapped(own, draws, seed))[0]
