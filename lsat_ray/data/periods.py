"""Cuts of the samples into periods D_1..D_T, and the 90/10 split inside a period (methods.md 0.2-0.3)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import numpy as np

from lsat_ray.config import DataConfig, PeriodsConfig
from lsat_ray.data.interactions import Interactions
from lsat_ray.data.windows import Samples, concatenate, windows
from lsat_ray.errors import LsatError

Part = Literal["train", "validation", "all"]


class Slice(NamedTuple):
    """Samples of one period: `train` (T_t), `validation` (V_t) or `all` (D_t)."""

    period: int
    """t, 1-based as in the paper."""
    part: Part


@dataclass(frozen=True)
class Periods:
    """The samples, and where each period begins and ends.

    Period t (1-based) is `samples` from `borders[t - 1]` up to `borders[t]`. Samples before `borders[0]` are the
    warm-up, which only the backbone and the naive statistics may see.
    """

    samples: Samples
    titles: tuple[str, ...]
    """Title of every item."""
    borders: tuple[int, ...]
    """T + 1 positions in `samples`."""
    validation: float = 0.1
    """Share of a period's samples, the last in time, that is V_t."""
    fingerprint: str = ""
    """SHA-256 of log, windows and cut."""
    validation_by: Literal["time", "user"] = "time"
    """Whether V_t is the last share of the period, or of every user's samples in it."""

    @property
    def count(self) -> int:
        """T."""
        return len(self.borders) - 1

    def span(self, period: int) -> slice:
        """Return the positions of D_t."""
        if not 1 <= period <= self.count:
            raise LsatError(f"periods: there is no period {period}; they run from 1 to {self.count}")
        return slice(self.borders[period - 1], self.borders[period])

    def positions(self, period: int, part: Part = "all") -> np.ndarray:
        """Return the positions of D_t, T_t or V_t, int64, ascending.

        By time T_t is the first `floor((1 - validation) * n)` of n samples; by user V_t is the last
        `round(validation * n)` of each user's n, so that it holds as many users as have that many.
        """
        span = self.span(period)
        every = np.arange(span.start, span.stop)
        if part == "all":
            return every
        if self.validation_by == "user":
            held = _last_of_each(self.samples.user[span], self.validation)
        else:
            held = np.arange(len(every)) >= int(len(every) * (1 - self.validation) + 1e-9)
        return every[held if part == "validation" else ~held]

    def rows(self, period: int, part: Part = "all") -> Samples:
        """Return the samples of D_t, T_t or V_t."""
        return self.samples.take(self.span(period) if part == "all" else self.positions(period, part))

    def select(self, slices: Iterable[Slice]) -> Samples:
        """Return the samples of several slices, in the order given."""
        return concatenate([self.rows(s.period, s.part) for s in slices])

    def warmup(self) -> Samples:
        """Return the samples before the first period."""
        return self.samples.take(slice(0, self.borders[0]))


def cut(log: Interactions, data: DataConfig, periods: PeriodsConfig) -> Periods:
    """Make the samples of a log and cut them into periods.

    Raises:
        LsatError: when a period would be empty or too small to split, or all samples have one label.
    """
    samples = windows(log, data.history, data.ties)
    if data.end is not None:
        samples = samples.take(samples.timestamp < data.end)
    n = len(samples)
    first = 0
    if data.start is not None:
        first = int(np.searchsorted(samples.timestamp, data.start, side="left"))
    if first >= n:
        span = f"data.start {data.start} and data.end {data.end}"
        raise LsatError(f"periods: no target lies between {span}; the log's Unix seconds must fall between them")
    if data.keep_last is not None:
        if data.keep_last > n - first:
            raise LsatError(f"data.keep_last: {data.keep_last} samples asked for, the log has {n - first}; lower it")
        first = n - data.keep_last
    elif data.format == "synthetic" and data.start is None:
        first = min(data.synthetic.warmup, n)
    borders = _borders(samples.timestamp, first, periods, data.start, data.end)
    for t, (start, stop) in enumerate(itertools.pairwise(borders), start=1):
        if stop - start < 2:
            raise LsatError(f"periods: period {t} has {stop - start} samples; cut fewer or longer periods")
    _two_classes(log, samples.label[borders[0] : borders[-1]], data)
    digest = hashlib.sha256(log.fingerprint().encode())
    digest.update(repr((data.history, data.ties, data.positive_above, n, borders, periods.validation)).encode())
    if periods.validation_by != "time":
        digest.update(periods.validation_by.encode())
    found = Periods(samples, log.titles, tuple(borders), periods.validation, digest.hexdigest(), periods.validation_by)
    for t in range(1, found.count + 1):
        if not 0 < len(found.positions(t, "validation")) < len(found.positions(t)):
            raise LsatError(
                f"periods.validation_by user: in period {t} no user has enough samples for V_t, or T_t is empty; "
                "cut longer periods, or split by time"
            )
    return found


def _last_of_each(user: np.ndarray, share: float) -> np.ndarray:
    """Return bool [N], whether a sample is among the last `round(share * n)` of its user's n, halves rounded up."""
    order = np.argsort(user, kind="stable")
    _, first, count = np.unique(user[order], return_index=True, return_counts=True)
    place = np.arange(len(user)) - np.repeat(first, count)
    kept = np.repeat(count - np.floor(count * share + 0.5 + 1e-9).astype(int), count)
    held = np.empty(len(user), dtype=bool)
    held[order] = place >= kept
    return held


def _two_classes(log: Interactions, label: np.ndarray, data: DataConfig) -> None:
    """Raise when the samples of the periods are all likes, or none is."""
    if label.min() != label.max():
        return
    which = "likes" if label[0] else "dislikes"
    remedy = "give a log with likes and dislikes"
    if log.rating is not None and log.rating.min() < log.rating.max():
        low, high = float(log.rating.min()), float(log.rating.max())
        remedy = f"ratings run from {low:g} to {high:g}, set it between them, for example to {(low + high) / 2:g}"
    raise LsatError(
        f"data.positive_above: with {data.positive_above:g} all {len(label)} samples of the periods are {which}; "
        f"{remedy}"
    )


def _borders(
    timestamp: np.ndarray, first: int, periods: PeriodsConfig, start: int | None, end: int | None
) -> list[int]:
    n = len(timestamp)
    if periods.cut == "count":
        if n - first < 2 * periods.number:
            raise LsatError(f"periods.number: {n - first} samples cannot make {periods.number} periods; lower it")
        return [first + (n - first) * t // periods.number for t in range(periods.number + 1)]
    if periods.cut == "time":
        low = int(timestamp[first]) if start is None else start
        high = int(timestamp[-1]) + 1 if end is None else end
        edges = [low + (high - low) * t / periods.number for t in range(periods.number + 1)]
    else:
        if len(periods.dates) < 3:
            raise LsatError("periods.dates: at least three ISO dates are needed, the borders of two periods")
        try:
            moments = [datetime.fromisoformat(d) for d in periods.dates]
            edges = [(m if m.tzinfo else m.replace(tzinfo=UTC)).timestamp() for m in moments]
        except ValueError as error:
            raise LsatError(f"periods.dates: {error}; write them as 2014-03-01") from error
        if edges != sorted(set(edges)):
            raise LsatError("periods.dates: the dates must increase")
    return [first + int(b) for b in np.searchsorted(timestamp[first:], edges, side="left")]
