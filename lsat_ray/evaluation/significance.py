"""Is one strategy better than another? Paired bootstrap over users, DeLong per period, Holm, and a verdict in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from lsat_ray.errors import LsatError
from lsat_ray.evaluation import delong


@dataclass(frozen=True)
class Scored:
    """One strategy's scores on one period under one seed, sorted by row."""

    row: np.ndarray
    """int64 [N], sample ids."""
    user: np.ndarray
    """[N]."""
    label: np.ndarray
    """[N], 0 or 1."""
    score: np.ndarray
    """float64 [N]."""

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Scored:
        """Build from a frame with columns row, user, label, score.

        Raises:
            LsatError: when a row appears twice.
        """
        ordered = frame.sort_values("row", kind="stable")
        row = ordered["row"].to_numpy(np.int64)
        if len(row) > 1 and (np.diff(row) == 0).any():
            raise LsatError(f"scores: row {row[np.flatnonzero(np.diff(row) == 0)[0]]} is scored twice")
        score = ordered["score"].to_numpy(np.float64)
        return cls(row, ordered["user"].to_numpy(), ordered["label"].to_numpy(np.int64), score)


class Key(NamedTuple):
    """Where scores come from."""

    seed: int
    period: int


Runs = Mapping[Key, Scored]
"""All scores of one strategy. A strategy without randomness has a single seed."""


@dataclass(frozen=True)
class Comparison:
    """Mean per-period AUC of one strategy minus that of another."""

    difference: float
    low: float
    high: float
    """Bootstrap percentile interval of the difference, not adjusted for the number of comparisons."""
    p: float
    """Two-sided bootstrap p-value."""
    p_adjusted: float
    """p after Holm's correction over the comparisons made together (equal to p for a single one)."""
    periods: tuple[int, ...]
    """The tested periods that both strategies have."""

    @property
    def verdict(self) -> str:
        """Return the outcome in words."""
        return verdict(self.difference, self.low, self.high, self.p_adjusted)


def compare(first: Runs, second: Runs, resamples: int = 2000, seed: int = 0, level: float = 0.95) -> Comparison:
    """Compare two strategies by a paired bootstrap over users; see `compare_all`."""
    return compare_all({"first": first, "second": second}, "second", resamples, seed, level)["first"]


def compare_all(
    strategies: Mapping[str, Runs], reference: str, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> dict[str, Comparison]:
    """Compare every strategy with the reference.

    Users are drawn with replacement; a draw reweights every period, seed and strategy alike, which keeps the
    comparison paired and the dependence between a user's rows. The statistic is the mean over periods of the AUC,
    averaged over a strategy's seeds: the interval speaks of other users, given these seeds.

    Args:
        strategies: scores by strategy, the reference among them.
        reference: name of the strategy that the others are compared with.
        resamples: draws of the bootstrap; the smallest p-value is 2 / (resamples + 1).
        seed: seed of the draws; the result is a function of it and of the scores.
        level: of the intervals.

    Raises:
        LsatError: when the reference is missing, two strategies share no period or scored different rows.
    """
    if reference not in strategies:
        raise LsatError(f"significance: {reference!r} is not among {', '.join(strategies)}")
    others = [name for name in strategies if name != reference]
    shared = {n: _shared_periods(strategies[n], strategies[reference], n, reference) for n in others}
    draws = _Draws(strategies, resamples, seed)
    base_point, base = draws.aucs(reference)
    found: dict[str, Comparison] = {}
    for name in others:
        point, replicates = draws.aucs(name)
        periods = shared[name]
        difference = _mean([point[t] - base_point[t] for t in periods])
        spread = _mean([replicates[t] - base[t] for t in periods])
        low, high, p = _interval(spread, level)
        found[name] = Comparison(float(difference), low, high, p, p, periods)
    adjusted = holm(np.array([found[n].p for n in others]))
    return {
        n: Comparison(c.difference, c.low, c.high, c.p, float(q), c.periods)
        for (n, c), q in zip(found.items(), adjusted, strict=True)
    }


def delong_per_period(first: Runs, second: Runs) -> pd.DataFrame:
    """Return a DeLong test for each seed and period that both strategies have.

    A strategy with a single seed is compared with every seed of the other. Columns: seed, period, difference, error, p,
    p_adjusted (Holm over all rows of the frame).
    """
    rows = []
    for key in sorted(set(first) | set(second)):
        a, b = _at(first, key), _at(second, key)
        if a is None or b is None:
            continue
        _same_rows(a, b, key.period)
        rows.append({**key._asdict(), **delong.paired_test(a.label, a.score, b.score)._asdict()})
    frame = pd.DataFrame(rows, columns=["seed", "period", "difference", "error", "p"])
    return frame.assign(p_adjusted=holm(frame["p"].to_numpy(np.float64)))


def holm(p: np.ndarray) -> np.ndarray:
    """Return Holm's step-down adjusted p-values; NaN stays NaN and does not count as a test."""
    p = np.asarray(p, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


def verdict(difference: float, low: float, high: float, p: float, alpha: float = 0.05) -> str:
    """Say whether a difference of AUC is one: `no difference`, `better by ..`, `worse by ..`, with interval and p."""
    if np.isnan(difference) or np.isnan(p):
        return "not comparable: a tested period has labels of one class only"
    span = f"[{short(low, sign=True)}, {short(high, sign=True)}], p {short_p(p)}"
    if p >= alpha:
        return f"no difference ({short(difference, sign=True)} {span})"
    return f"{'better' if difference > 0 else 'worse'} by {short(abs(difference))} {span}"


def short(value: float, digits: int = 4, sign: bool = False) -> str:
    """Write an AUC or a difference without its leading zero: .7650, +.0070."""
    if np.isnan(value):
        return "-"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and not text.lstrip("+-").startswith("1") else text


def short_p(p: float) -> str:
    """Write a p-value with its relation: `= .012`, `< .001`."""
    return "< .001" if p < 0.001 else f"= {short(p, 3)}" if p < 0.1 else f"= {short(p, 2)}"


class _Draws:
    """The bootstrap's user weights, drawn once and applied to every strategy."""

    CHUNK = 128  # draws at a time: keeps weights and cumulated sums within the cache

    def __init__(self, strategies: Mapping[str, Runs], resamples: int, seed: int) -> None:
        self._strategies, self._resamples, self._seed = strategies, resamples, seed
        users = [scored.user for runs in strategies.values() for scored in runs.values()]
        self._users = np.unique(np.concatenate([np.unique(u) for u in users]))

    def aucs(self, name: str) -> tuple[dict[int, float], dict[int, np.ndarray]]:
        """Return by period the AUC and its replicates [resamples], averaged over the strategy's seeds."""
        runs = self._strategies[name]
        by_period: dict[int, list[_Weighted]] = {}
        for key in sorted(runs):
            by_period.setdefault(key.period, []).append(_Weighted(runs[key], self._users))
        whole = np.ones((len(self._users), 1), dtype=np.float32)
        point = {t: float(_mean([w.auc(whole) for w in ws])[0]) for t, ws in by_period.items()}
        parts: dict[int, list[np.ndarray]] = {t: [] for t in by_period}
        for weights in self._chunks():
            for t, ws in by_period.items():
                parts[t].append(_mean([w.auc(weights) for w in ws]))
        return point, {t: np.concatenate(p) for t, p in parts.items()}

    def _chunks(self) -> Iterator[np.ndarray]:
        """Yield how often each user was drawn, [users, draws] float32; the same sequence on every call."""
        rng, users = np.random.default_rng(self._seed), len(self._users)
        for begin in range(0, self._resamples, self.CHUNK):
            size = min(self.CHUNK, self._resamples - begin)
            drawn = rng.integers(0, users, size=(size, users)) + np.arange(size)[:, None] * users
            counts = np.bincount(drawn.ravel(), minlength=size * users)
            yield np.ascontiguousarray(counts.reshape(size, users).T, dtype=np.float32)


class _Weighted:
    """The AUC of one set of scores as a function of the users' weights."""

    def __init__(self, scored: Scored, users: np.ndarray) -> None:
        user = np.searchsorted(users, scored.user)
        truth = scored.label.astype(bool)
        order = np.argsort(scored.score[~truth], kind="stable")
        negative = scored.score[~truth][order]
        self._negative_user = user[~truth][order]
        self._positive_user = user[truth]
        # How many negatives a positive outranks, and how many it outranks or ties with.
        self._below = np.searchsorted(negative, scored.score[truth], side="left")
        self._up_to = np.searchsorted(negative, scored.score[truth], side="right")
        self._ties = bool((self._below != self._up_to).any())

    def auc(self, weights: np.ndarray) -> np.ndarray:
        """Return the AUC [draws] under user weights [users, draws]; NaN where a class has no weight."""
        draws = weights.shape[1]
        negatives = np.zeros((len(self._negative_user) + 1, draws), dtype=np.float32)
        # Sums of whole numbers, exact in float32 up to 2**24 negatives.
        np.cumsum(weights[self._negative_user], axis=0, out=negatives[1:])
        positive = weights[self._positive_user]
        outranked = negatives[self._below]
        if self._ties:
            outranked = 0.5 * (outranked + negatives[self._up_to])
        np.multiply(outranked, positive, out=outranked)
        total = positive.sum(axis=0, dtype=np.float64) * negatives[-1].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return outranked.sum(axis=0, dtype=np.float64) / np.where(total == 0, np.nan, total)


def _mean(parts: list) -> np.ndarray:
    """Return the mean of numbers or arrays, leaving out NaN entry by entry."""
    table = np.asarray(parts, dtype=np.float64)
    known = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        return np.where(known, table, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)


def _interval(replicates: np.ndarray, level: float) -> tuple[float, float, float]:
    known = replicates[~np.isnan(replicates)]
    if len(known) == 0:
        return float("nan"), float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    tail = 1 + min(int((known <= 0).sum()), int((known >= 0).sum()))
    return float(low), float(high), min(1.0, 2 * tail / (len(known) + 1))


def _at(runs: Runs, key: Key) -> Scored | None:
    """Return the scores at a key; a strategy with one seed has them for every seed."""
    seeds = {k.seed for k in runs}
    return runs.get(Key(next(iter(seeds)), key.period) if len(seeds) == 1 else key)


def _shared_periods(first: Runs, second: Runs, name: str, reference: str) -> tuple[int, ...]:
    periods = sorted({k.period for k in first} & {k.period for k in second})
    if not periods:
        raise LsatError(f"significance: {name} and {reference} were tested on no common period")
    for t in periods:
        head = next(s for k, s in first.items() if k.period == t)
        for other in (s for runs in (first, second) for k, s in runs.items() if k.period == t):
            _same_rows(head, other, t)
    return tuple(periods)


def _same_rows(first: Scored, second: Scored, period: int) -> None:
    if not np.array_equal(first.row, second.row) or not np.array_equal(first.label, second.label):
        raise LsatError(f"significance: period {period}: the strategies scored different rows; score them again")
