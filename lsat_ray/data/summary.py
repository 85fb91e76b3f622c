"""What a log holds, in one line, and what in it looks wrong."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from lsat_ray.data.interactions import Interactions
from lsat_ray.data.periods import Part, Periods

EARLIEST = 631_152_000
"""1990-01-01 UTC; feedback from before is taken for a wrong unit."""


@dataclass(frozen=True)
class LogSummary:
    """Facts about a log and its cut."""

    samples: int
    """Samples of D_1..D_T and of the warm-up."""
    users: int
    """Users of the log."""
    items: int
    """Items of the log."""
    like_share: float
    """Share of likes among the samples."""
    first: str
    """ISO date (UTC) of the first row of the log."""
    last: str
    """ISO date (UTC) of its last row."""
    warmup: int
    """Samples before D_1."""
    dropped: int
    """Rows of the file that the reader left out."""
    duplicates: int
    """Rows that repeat an earlier one (`data.duplicates` says whether they were dropped)."""
    warnings: tuple[str, ...] = ()
    """One line for each thing that looks wrong but can be worked with."""

    def line(self) -> str:
        """Return the facts as one line of text, without the warnings."""
        return (
            f"{self.samples:,} samples of {self.users:,} users and {self.items:,} items, {self.like_share:.1%} likes, "
            f"{self.first} to {self.last}; {self.warmup:,} samples before the first period, "
            f"{self.dropped:,} rows dropped, {self.duplicates:,} duplicates"
        )


def summarise(log: Interactions, periods: Periods, first_test: int = 2, now: float | None = None) -> LogSummary:
    """Return the facts of a log and warnings about its times, titles and labels.

    Args:
        log: as `data.load` returned it.
        periods: the cut of the log.
        first_test: first period that is tested on; V_t is searched from the period before it.
        now: Unix seconds after which a time lies in the future; None asks the clock.
    """
    samples = periods.samples
    return LogSummary(
        samples=len(samples),
        users=len(log.user_ids),
        items=len(log.item_ids),
        like_share=float(samples.label.mean()),
        first=_date(log.timestamp.min()),
        last=_date(log.timestamp.max()),
        warmup=len(periods.warmup()),
        dropped=log.dropped,
        duplicates=log.duplicates,
        warnings=(
            *_times(log, time.time() if now is None else now),
            *_titles(log),
            *_labels(periods, first_test),
        ),
    )


def _times(log: Interactions, now: float) -> list[str]:
    stamp = log.timestamp
    if stamp.min() == stamp.max():
        return [f"all {len(log)} rows have the same time ({_date(stamp[0])}); periods follow the order of the file"]
    found = []
    if early := int((stamp < EARLIEST).sum()):
        found.append(f"{early} rows are from before 1990 (the first from {_date(stamp.min())}); give Unix seconds")
    if late := int((stamp > now).sum()):
        found.append(
            f"{late} rows are from the future (the last from {_date(stamp.max())}); give Unix seconds, not milliseconds"
        )
    return found


def _titles(log: Interactions) -> list[str]:
    blank = [i for i, title in enumerate(log.titles) if not title.strip()]
    if not blank:
        return []
    return [f"{len(blank)} of {len(log.titles)} items have a blank title (first {log.item_ids[blank[0]]}); name them"]


def _labels(periods: Periods, first_test: int) -> list[str]:
    """Name the tested periods, and the V_t that a search reads, whose samples all have one label."""

    def of_one_class(t: int, part: Part) -> bool:
        label = periods.rows(t, part).label
        return bool(label.min() == label.max())

    tested = [t for t in range(first_test, periods.count + 1) if of_one_class(t, "all")]
    searched = [t for t in range(max(first_test - 1, 1), periods.count) if of_one_class(t, "validation")]
    found = []
    if tested:
        found.append(f"all samples of period {_list(tested)} have one label: no AUC there; cut fewer periods")
    if searched:
        found.append(
            f"all samples of V_t have one label in period {_list(searched)}: merge weights cannot be searched there; "
            "raise periods.validation or cut fewer periods"
        )
    return found


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _date(second: int) -> str:
    return str(np.datetime64(int(second), "s").astype("datetime64[D]"))
