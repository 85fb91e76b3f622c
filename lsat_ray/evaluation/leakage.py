"""The leakage audit: nothing that is read for a period may come from what the period's model is tested on.

Samples are ordered by (timestamp, file order). LSAT allows ties, so the last one before a tested period may carry the
second in which the period starts: the audit compares their order, and timestamps only where strictly later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lsat_ray.data.periods import Periods
from lsat_ray.errors import LsatError

Kind = Literal["unknown", "order", "timestamp", "history", "poison"]


class LeakageError(LsatError):
    """A model was to be tested on what it, or its selection, has read; the message names every such read."""


@dataclass(frozen=True)
class Read:
    """Samples that were read (trained on, selected on, searched on) before a period was tested."""

    what: str
    """Who read them: an adapter's digest, `search`, a baseline's name."""
    rows: np.ndarray
    """int64 [R], `Samples.row` ids."""


@dataclass(frozen=True)
class Finding:
    """One leak."""

    what: str
    """Name of the read that leaks."""
    kind: Kind
    """`order`: samples at or after the first tested one; `timestamp`: targets strictly later than the tested period's
    start; `history`: a history event later than its target; `unknown`: ids that are no samples; `poison`: scores that
    change with the labels they are tested on."""
    rows: np.ndarray
    """int64, `Samples.row` ids of the samples that leak."""

    def __str__(self) -> str:
        """Return the finding as one line."""
        shown = ", ".join(map(str, self.rows[:3].tolist())) + (", ..." if len(self.rows) > 3 else "")
        return f"{self.what}: {_WORDS[self.kind]} ({len(self.rows)} rows: {shown})"


_WORDS: dict[Kind, str] = {
    "unknown": "reads rows that the stream does not have",
    "order": "reads rows at or after the first tested row",
    "timestamp": "reads targets later than the start of the tested period",
    "history": "a history holds an event later than its target",
    "poison": "scores change when the labels they are tested on change",
}


def audit(periods: Periods, reads: Iterable[Read], tested: int, ties: bool = True) -> list[Finding]:
    """Return every leak into the test on D_tested; an empty list where there is none.

    Args:
        periods: the stream.
        reads: everything that was read before D_tested was scored.
        tested: the tested period, 1-based.
        ties: whether a history may hold events of its target's own second.

    Raises:
        LsatError: when there is no such period.
    """
    samples, first = periods.samples, periods.span(tested).start
    first_row, start = samples.row[first], samples.timestamp[first]
    findings: list[Finding] = []

    def found(what: str, kind: Kind, rows: np.ndarray) -> None:
        if len(rows):
            findings.append(Finding(what, kind, rows))

    for read in reads:
        rows = np.unique(np.asarray(read.rows, dtype=np.int64))
        position = np.minimum(np.searchsorted(samples.row, rows), len(samples) - 1)
        known = samples.row[position] == rows
        found(read.what, "unknown", rows[~known])
        rows, position = rows[known], position[known]
        found(read.what, "order", rows[rows >= first_row])
        found(read.what, "timestamp", rows[samples.timestamp[position] > start])
        found(read.what, "history", _late_histories(periods, position, ties))
    span = periods.span(tested)
    found(f"period {tested}", "history", _late_histories(periods, np.arange(span.start, span.stop), ties))
    return findings


def check(periods: Periods, reads: Iterable[Read], tested: int, ties: bool = True) -> None:
    """Refuse a test that leaks.

    Raises:
        LeakageError: naming every finding of `audit`.
    """
    findings = audit(periods, reads, tested, ties)
    if findings:
        raise LeakageError(f"leakage into the test on period {tested}: " + "; ".join(map(str, findings)))


def poison(periods: Periods, tested: int) -> Periods:
    """Return the stream with every target label from the first sample of D_tested on inverted.

    Whoever scores D_tested without having read those labels gives the same scores on it: histories are left alone,
    because an earlier event of the same period is known when its user's next one is scored.
    """
    label = periods.samples.label.copy()
    label[periods.span(tested).start :] ^= 1
    return replace(periods, samples=replace(periods.samples, label=label), fingerprint=f"{periods.fingerprint}-poison")


def immune(score: Callable[[Periods, int], np.ndarray], periods: Periods, tested: int, what: str) -> list[Finding]:
    """Score D_tested twice, on the clean and on the poisoned stream, and return the samples whose score changed.

    Args:
        score: fits on whatever it likes of the stream and returns scores [rows of D_tested].
        periods: the stream.
        tested: the tested period, 1-based.
        what: name of the scorer in the finding.
    """
    clean, poisoned = score(periods, tested), score(poison(periods, tested), tested)
    changed = np.flatnonzero(np.asarray(clean) != np.asarray(poisoned))
    rows = periods.rows(tested).row[changed]
    return [Finding(what, "poison", rows)] if len(rows) else []


def _late_histories(periods: Periods, position: np.ndarray, ties: bool) -> np.ndarray:
    target = periods.samples.timestamp[position, None]
    history = periods.samples.history_timestamp[position]
    late = (history > target) if ties else (history >= target)
    return periods.samples.row[position][late.any(axis=1)]
