"""The stream: periods behind a watermark, and readers that may not look past it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from lsat_ray.data.periods import Periods, Slice
from lsat_ray.data.reservoir import reservoir
from lsat_ray.data.windows import Samples
from lsat_ray.errors import LsatError


class Reader(Protocol):
    """What a worker may ask of the stream; every read carries the reader's time `as_of`."""

    def read(self, slices: Sequence[Slice], as_of: int) -> list[Samples]:
        """Return the samples of slices, none newer than `as_of` or the watermark."""

    def view(self, as_of: int) -> Periods:
        """Return the periods with every label that came after `as_of` blanked."""

    def replayed(self, before: int, size: int, seed: int, as_of: int) -> Samples:
        """Return a reservoir of `size` samples of T_1..T_(before - 1)."""


class Stream:
    """Periods behind a watermark, in this process."""

    def __init__(self, periods: Periods, watermark: int = 0) -> None:
        self._periods = periods
        self.watermark = watermark
        """Newest period that has arrived."""

    def arrive(self, period: int) -> None:
        """Let period t arrive and move the watermark to it; repeating the call changes nothing.

        Raises:
            LsatError: when a period would be skipped, or there is no such period.
        """
        if period > self._periods.count:
            raise LsatError(f"stream: there is no period {period}; the stream ends with {self._periods.count}")
        if period > self.watermark + 1:
            raise LsatError(f"stream: period {period} cannot arrive before period {self.watermark + 1}")
        self.watermark = max(self.watermark, period)

    def check(self, slices: Sequence[Slice], as_of: int) -> None:
        """Refuse slices that are newer than the reader's time or than the watermark.

        Raises:
            LsatError: naming the slice.
        """
        for s in slices:
            if s.period > min(as_of, self.watermark):
                raise LsatError(
                    f"stream: a reader at period {as_of} asked for {s.part} samples of period {s.period}, "
                    f"the watermark stands at {self.watermark}; this would be a look into the future"
                )

    def read(self, slices: Sequence[Slice], as_of: int) -> list[Samples]:
        """Return the samples of slices."""
        self.check(slices, as_of)
        return [self._periods.rows(s.period, s.part) for s in slices]

    def view(self, as_of: int) -> Periods:
        """Return the periods as a reader at `as_of` may know them: all labels that came later are blanked.

        The catalogue and the number of users stay, as in the paper, where id tables are sized for the whole log.

        Raises:
            LsatError: when `as_of` is past the watermark.
        """
        self.check([Slice(as_of, "all")], as_of)
        whole = self._periods.samples
        known = np.arange(len(whole)) < self._periods.borders[as_of]
        hidden = replace(
            whole,
            label=np.where(known, whole.label, 0).astype(whole.label.dtype),
            history_label=np.where(known[:, None], whole.history_label, 0).astype(whole.history_label.dtype),
            probability=None,
            oracles=None,
        )
        return replace(self._periods, samples=hidden)

    def replayed(self, before: int, size: int, seed: int, as_of: int) -> Samples:
        """Return a reservoir of `size` samples of T_1..T_(before - 1)."""
        periods = self.view(as_of)
        return periods.samples.take(reservoir(periods, before - 1, size, seed))
