"""Is one row of the table better than another? Bootstrap and permutation test by user, Holm, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lsat_ray.errors import LsatError
from lsat_ray.evaluation import resampling
from lsat_ray.evaluation.resampling import Pair

RESAMPLES = 20_000
"""Draws of the bootstrap and of the permutation test: the smallest p-value is 1 / (RESAMPLES + 1)."""

ALPHA = 0.05
"""Level of the tests, after Holm's correction."""


@dataclass(frozen=True)
class Scored:
    """One strategy's scores on one period under one seed, sorted by sample."""

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

    def only(self, mask: np.ndarray) -> Scored:
        """Return the samples where a mask [N] is true."""
        return Scored(self.row[mask], self.user[mask], self.label[mask], self.score[mask])


class Key(NamedTuple):
    """Seed, tested period and backbone of scores."""

    seed: int
    period: int
    backbone: str = ""
    """Name of the backbone where a study has several."""


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
    """Two-sided p-value."""
    p_adjusted: float
    """p after Holm's correction over the comparisons made together (equal to p for a single one)."""
    periods: tuple[int, ...]
    """The tested periods that both strategies have."""
    at_floor: bool = False
    """Whether no resample was as extreme: p is then the least that so many resamples can show."""

    def words(self, noise: float | None = None) -> str:
        """Return the verdict; see `verdict`."""
        return verdict(self.difference, self.low, self.high, self.p_adjusted, noise, self.at_floor)


def compare(
    first: Runs, second: Runs, resamples: int = RESAMPLES, seed: int = 0, level: float = 1 - ALPHA
) -> Comparison:
    """Compare two strategies; see `compare_all`."""
    return compare_all({"first": first, "second": second}, "second", resamples, seed, level)["first"]


def compare_all(
    strategies: Mapping[str, Runs],
    reference: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 1 - ALPHA,
) -> dict[str, Comparison]:
    """Compare every strategy with the reference by the mean over periods of the difference of AUC.

    The statistic is averaged over the seeds and backbones that both have; a strategy with a single one is compared
    with each of the other's. All rows of a user, in all periods, stay together:

    - interval: percentiles of a paired bootstrap over backbones, then seeds, then users (`resampling.bootstrap`);
    - p: the larger of two. The permutation test swaps the two strategies for random users, exact for these seeds
      (`resampling.signed`); the share of bootstrap differences that lie as far from the measured one as zero does
      speaks of other seeds and backbones too.

    Args:
        strategies: scores by strategy, the reference among them.
        reference: name of the strategy that the others are compared with.
        resamples: draws of both; the smallest p-value is 1 / (resamples + 1).
        seed: seed of the draws; the result is a function of it and of the scores.
        level: of the intervals.

    Raises:
        LsatError: when the reference is missing, or two strategies share no period or no seed, or scored different
            samples.
    """
    if reference not in strategies:
        raise LsatError(f"significance: {reference!r} is not among {', '.join(strategies)}")
    base = strategies[reference]
    tallies = {n: _Tally.of(n, runs, base, reference) for n, runs in strategies.items() if n != reference}
    if not tallies:
        return {}
    users = {key.period: scored.user for key, scored in base.items()}
    units = dict(zip(users, resampling.grouped(list(users.values()), seed), strict=True))
    count = 1 + max(int(u.max()) for u in units.values())
    drawn = resampling.user_draws(count, resamples, seed)
    weights = {
        n: resampling.replicate_draws([r.name for r in t.replicates], resamples, seed) for n, t in tallies.items()
    }
    for period, unit in units.items():
        pairs = {n: t.pairs(strategies[n], base, period, unit) for n, t in tallies.items()}
        flat = [pair for several in pairs.values() for pair in several.values()]
        if not flat or len(set(flat[0].label.tolist())) < 2:  # a period of one class has no AUC
            continue
        found = iter(resampling.bootstrap(flat, drawn))
        for name, several in pairs.items():
            if several:
                replicates = np.stack([next(found) for _ in several])
                signs = np.mean([resampling.signed(p, count) for p in several.values()], axis=0)
                tallies[name].add(replicates, weights[name][list(several)], signs)
    return _concluded(tallies, resamples, seed, level)


def holm(p: np.ndarray) -> np.ndarray:
    """Return Holm's step-down adjusted p-values; NaN stays NaN and does not count as a test."""
    p = np.asarray(p, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


def verdict(
    difference: float, low: float, high: float, p: float, noise: float | None = None, at_floor: bool = False
) -> str:
    """Say in words whether a difference of AUC is one, with its interval and its p-value after Holm.

    `better by` and `worse by` need both p below `ALPHA` and an interval without zero; `no difference` stands beside an
    interval with zero only.

    Args:
        difference: of mean AUC.
        low: lower end of its interval.
        high: upper end of its interval.
        p: adjusted p-value.
        noise: noise floor; a smaller difference is none, whatever its p-value.
        at_floor: whether p is the least that the resamples can show.
    """
    if np.isnan(difference) or np.isnan(p):
        return "not comparable: a tested period has labels of one class only"
    signed = short(difference, sign=True)
    span = f"[{short(low, sign=True)}, {short(high, sign=True)}], p {short_p(p, at_floor)}"
    if noise is not None and abs(difference) < noise:
        return f"below the noise floor ({signed} {span})"
    if low <= 0 <= high:
        return f"no difference ({signed} {span})"
    if p >= ALPHA:
        return f"not significant after Holm ({signed} {span})"
    return f"{'better' if difference > 0 else 'worse'} by {short(abs(difference))} {span}"


def short(value: float, digits: int = 4, sign: bool = False) -> str:
    """Write an AUC or a difference without its leading zero: .7650, +.0070."""
    if np.isnan(value):
        return "-"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and not text.lstrip("+-").startswith("1") else text


def short_p(p: float, at_floor: bool = False) -> str:
    """Write a p-value with its relation: `= .012`, `< .001`, and at the floor of the resampling `< .00005`."""
    if at_floor and p < 0.1:
        digits = 1 - int(np.floor(np.log10(p)))  # two significant ones, rounded up: the bound must hold
        text = f"{np.ceil(round(p * 10**digits, 6)) / 10**digits:.{digits}f}"
        return f"< {text.rstrip('0').removeprefix('0')}"
    return "< .001" if p < 0.001 else f"= {short(p, 3)}" if p < 0.1 else f"= {short(p, 2)}"


class _Replicate(NamedTuple):
    """A backbone and a seed of a comparison, and those of the two strategies that stand for it."""

    name: tuple[str, int]
    first: tuple[str, int]
    second: tuple[str, int]


@dataclass
class _Tally:
    """What is summed up over periods for one comparison."""

    periods: tuple[int, ...]
    replicates: list[_Replicate]
    total: np.ndarray | float = 0.0
    """[draws], sum over periods of the difference of AUC."""
    known: np.ndarray | float = 0.0
    """[draws], periods that had both classes in a draw."""
    signs: list[np.ndarray] = field(default_factory=list)
    """One `resampling.signed` per period."""

    @classmethod
    def of(cls, name: str, first: Runs, second: Runs, reference: str) -> _Tally:
        periods = tuple(sorted({k.period for k in first} & {k.period for k in second}))
        if not periods:
            raise LsatError(f"significance: {name} and {reference} were tested on no common period")
        for t in periods:
            head = next(s for k, s in second.items() if k.period == t)
            for other in (s for runs in (first, second) for k, s in runs.items() if k.period == t):
                _same_samples(head, other, t)
        backbones = _matched({k.backbone for k in first}, {k.backbone for k in second})
        seeds = _matched({k.seed for k in first}, {k.seed for k in second})
        if not backbones or not seeds:
            raise LsatError(f"significance: {name} and {reference} share no seed or no backbone; run both for one")
        several = [len({k.backbone for k in first}) > 1, len({k.seed for k in first}) > 1]
        replicates = [
            _Replicate((b1 if several[0] else b2, s1 if several[1] else s2), (b1, s1), (b2, s2))
            for b1, b2 in backbones
            for s1, s2 in seeds
        ]
        return cls(periods, replicates)

    def pairs(self, first: Runs, second: Runs, period: int, unit: np.ndarray) -> dict[int, Pair]:
        """Return the scores of a period by replicate, where both strategies have them."""
        found = {}
        for i, replicate in enumerate(self.replicates):
            a, b = (
                runs.get(Key(seed, period, backbone))
                for runs, (backbone, seed) in ((first, replicate.first), (second, replicate.second))
            )
            if a is not None and b is not None:
                found[i] = Pair(unit, a.label, a.score, b.score)
        return found

    def add(self, replicates: np.ndarray, weights: np.ndarray, signs: np.ndarray) -> None:
        """Add one period: differences and weights [replicates, draws], and signed contributions [units]."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (weights * replicates).sum(axis=0) / weights.sum(axis=0)
        self.total = self.total + np.nan_to_num(mean)
        self.known = self.known + ~np.isnan(mean)
        self.signs.append(signs)


def _concluded(tallies: Mapping[str, _Tally], resamples: int, seed: int, level: float) -> dict[str, Comparison]:
    """Return the comparisons with their intervals, p-values and Holm's correction over all of them."""
    known = {n: t for n, t in tallies.items() if t.signs}
    nan = float("nan")
    found = {n: Comparison(nan, nan, nan, nan, nan, t.periods) for n, t in tallies.items()}
    if known:
        signs = np.stack([np.mean(t.signs, axis=0) for t in known.values()])
        nulls = resampling.swapped(signs, resamples, seed)
        for (name, tally), difference, null in zip(known.items(), signs.sum(axis=1), nulls, strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):
                spread = tally.total / tally.known
            low, high = np.nanquantile(spread, [(1 - level) / 2, (1 + level) / 2])
            tests = [resampling.p_value(difference, n) for n in (null, spread - difference)]
            p, at_floor = max(tests)[0], all(least for _, least in tests)
            found[name] = Comparison(float(difference), float(low), float(high), p, p, tally.periods, at_floor)
    adjusted = holm(np.array([c.p for c in found.values()]))
    return {n: replace(c, p_adjusted=float(q)) for (n, c), q in zip(found.items(), adjusted, strict=True)}


def _matched(first: set[Any], second: set[Any]) -> list[tuple[Any, Any]]:
    """Return which of the one goes with which of the other: a single one with all, else the shared ones."""
    if len(second) == 1:
        return [(a, b) for a in sorted(first) for b in second]
    if len(first) == 1:
        return [(a, b) for a in first for b in sorted(second)]
    return [(a, a) for a in sorted(first & second)]


def _same_samples(first: Scored, second: Scored, period: int) -> None:
    if not np.array_equal(first.row, second.row) or not np.array_equal(first.label, second.label):
        raise LsatError(f"significance: period {period}: the strategies scored different samples; score them again")
