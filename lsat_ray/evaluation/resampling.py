"""What a difference of AUC would be with other users: the bootstrap and the permutation test, as matrix products.

The AUC under user weights w is a ratio of quadratic forms: with M[u, v] the number of pairs in which a positive of user
u outranks a negative of user v (ties count one half), and p and n the users' positives and negatives,

    AUC(w) = w' M w / ((w' p) (w' n)).

A draw of users thus costs one small matrix product and no sorting. In the permutation test the two strategies swap
their ranks for a random half of the users; that difference is linear in the signs of the users (see `signed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lsat_ray.evaluation.delong import midranks

GROUPS = 512
"""Where a period has more users, they are drawn in that many random groups: a draw costs the square of the number."""

_CHUNK = 2048  # draws at a time: keeps the products within the cache


@dataclass(frozen=True)
class Pair:
    """The scores of two rows of a table on the same samples of one period."""

    unit: np.ndarray
    """int64 [N], the user (or group of users) of each sample, from 0."""
    label: np.ndarray
    """[N], 0 or 1."""
    first: np.ndarray
    """[N], scores."""
    second: np.ndarray
    """[N], scores."""


def grouped(users: Sequence[np.ndarray], seed: int = 0) -> list[np.ndarray]:
    """Return the users of each period as small integers, the same integer for the same user everywhere.

    Where a period has more than `GROUPS` users, or all periods together very many, users are put into `GROUPS` random
    groups, which are then drawn like users: groups of independent users are independent, so intervals stay valid.
    """
    names, index = np.unique(np.concatenate(users), return_inverse=True)
    parts = np.split(index, np.cumsum([len(u) for u in users])[:-1])
    if max(len(np.unique(p)) for p in parts) <= GROUPS and len(names) <= 16 * GROUPS:
        return parts
    group = np.random.default_rng(seed).permutation(len(names)) % GROUPS
    return [group[p] for p in parts]


def user_draws(units: int, draws: int, seed: int = 0) -> np.ndarray:
    """Return how often each unit is in each draw of `units - 1` with replacement, uint8 [units, draws].

    One less than there are makes the variance unbiased (Rao and Wu 1988), which tells where there are few.
    """
    rng, parts = np.random.default_rng(seed), []
    for begin in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - begin)
        drawn = rng.integers(0, units, size=(size, max(1, units - 1))) + np.arange(size)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=size * units)
        parts.append(counts.reshape(size, units).T.astype(np.uint8))
    return np.concatenate(parts, axis=1)


def replicate_draws(replicates: Sequence[tuple[str, int]], draws: int, seed: int = 0) -> np.ndarray:
    """Return the weight of each (backbone, seed) in each draw, float64 [replicates, draws].

    Backbones are drawn first, then the seeds of each: n - 1 of n with replacement, as the users are. A level with a
    single member is held fixed.
    """
    rng = np.random.default_rng([seed, 1])
    backbones = sorted({backbone for backbone, _ in replicates})
    outer = _drawn(rng, len(backbones), draws)
    weight = np.zeros((len(replicates), draws))
    for b, backbone in enumerate(backbones):
        members = [i for i, (other, _) in enumerate(replicates) if other == backbone]
        weight[members] = outer[b] * _drawn(rng, len(members), draws)
    return weight


def bootstrap(pairs: Sequence[Pair], drawn: np.ndarray) -> np.ndarray:
    """Return the difference of AUC, first minus second, of each pair in each draw of users, float64 [pairs, draws].

    Args:
        pairs: of one period: the same samples, so the same `unit` and `label`.
        drawn: [units, draws], see `user_draws`.

    Returns:
        differences; NaN in draws without a positive or without a negative.
    """
    active, unit = np.unique(pairs[0].unit, return_inverse=True)
    truth = pairs[0].label.astype(bool)
    positives, negatives = (np.bincount(unit[side], minlength=len(active)) for side in (truth, ~truth))
    second = _cached(pairs, unit, truth)
    matrices = [(pair_counts(unit, truth, p.first) - second[id(p.second)]).astype(np.float32) for p in pairs]
    drawn = drawn[active]
    out = np.empty((len(pairs), drawn.shape[1]))
    for begin in range(0, drawn.shape[1], _CHUNK):
        weight = drawn[:, begin : begin + _CHUNK].astype(np.float32)
        total = (positives @ weight.astype(np.float64)) * (negatives @ weight.astype(np.float64))
        total[total == 0] = np.nan
        for row, matrix in zip(out, matrices, strict=True):
            row[begin : begin + _CHUNK] = np.einsum("ub,ub->b", matrix @ weight, weight) / total
    return out


def pair_counts(unit: np.ndarray, truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Return M[u, v], how many pairs of a positive of u and a negative of v are ranked rightly, ties one half."""
    units = int(unit.max()) + 1
    order = np.argsort(score[~truth], kind="stable")
    negative = score[~truth][order]
    below = np.zeros((len(negative) + 1, units), dtype=np.float32)  # negatives of v among the k lowest
    below[np.arange(1, len(negative) + 1), unit[~truth][order]] = 1
    np.cumsum(below, axis=0, out=below)
    owner = np.argsort(unit[truth], kind="stable")
    positive, who = score[truth][owner], unit[truth][owner]
    outranked = below[np.searchsorted(negative, positive, side="left")]
    outranked += below[np.searchsorted(negative, positive, side="right")]
    counts = np.zeros((units, units))
    if len(who):
        begin = np.flatnonzero(np.r_[True, who[1:] != who[:-1]])
        counts[who[begin]] = 0.5 * np.add.reduceat(outranked, begin, axis=0, dtype=np.float64)
    return counts


def signed(pair: Pair, units: int) -> np.ndarray:
    """Return each user's part g [units] of the difference of AUC: with users swapped it is the sum of g with signs.

    A user's sign is -1 where the two strategies swap their scores for it. Scores are replaced by their ranks within the
    period, so that strategies on different scales can be swapped (Venkatraman and Begg, Biometrika 1996). The swapped
    difference is a quadratic form in the signs; swapping everybody inverts it, so only its linear terms remain. All NaN
    when a class is missing.
    """
    truth = pair.label.astype(bool)
    if truth.all() or not truth.any():
        return np.full(units, np.nan)
    a, b = midranks(pair.first), midranks(pair.second)
    part = np.empty(len(truth))
    # A positive gains by outranking negatives, a negative by being outranked; against those of both rows alike.
    part[truth] = _share_below(a[truth], a[~truth], b[~truth]) - _share_below(b[truth], a[~truth], b[~truth])
    part[~truth] = _share_below(b[~truth], a[truth], b[truth]) - _share_below(a[~truth], a[truth], b[truth])
    part /= np.where(truth, truth.sum(), (~truth).sum())
    return np.bincount(pair.unit, part, minlength=units)


def swapped(g: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
    """Return the sums of g [..., units] under random signs of the units, float64 [..., draws]."""
    rng, parts = np.random.default_rng([seed, 2]), []
    for begin in range(0, draws, _CHUNK):
        flips = rng.integers(0, 2, size=(g.shape[-1], min(_CHUNK, draws - begin)), dtype=np.int8)
        parts.append(g @ (1.0 - 2.0 * flips))
    return np.concatenate(parts, axis=-1)


def p_value(difference: float, null: np.ndarray) -> tuple[float, bool]:
    """Return the two-sided p-value of a difference under draws of the null, and whether it is the least possible one.

    It is (1 + draws at least as large) / (1 + draws): with none as large, the true value may be anything below.
    """
    known = null[~np.isnan(null)]
    extreme = int((np.abs(known) >= abs(difference) - 1e-9).sum())
    return (1 + extreme) / (1 + len(known)), extreme == 0


def _drawn(rng: np.random.Generator, members: int, draws: int) -> np.ndarray:
    """Return the weights [members, draws] of `members - 1` drawn with replacement (of the only one: 1)."""
    if members == 1:
        return np.ones((1, draws))
    return rng.multinomial(members - 1, np.full(members, 1 / members), size=draws).T / (members - 1)


def _cached(pairs: Sequence[Pair], unit: np.ndarray, truth: np.ndarray) -> dict[int, np.ndarray]:
    """Return the pair counts of each distinct array of second scores, by its id: rows share their reference."""
    distinct = {id(p.second): p.second for p in pairs}
    return {key: pair_counts(unit, truth, score) for key, score in distinct.items()}


def _share_below(values: np.ndarray, *pools: np.ndarray) -> np.ndarray:
    """Return the share of the pooled numbers that lie below each value, ties one half."""
    pool = np.sort(np.concatenate(pools))
    return (np.searchsorted(pool, values, "left") + np.searchsorted(pool, values, "right")) / (2 * len(pool))
