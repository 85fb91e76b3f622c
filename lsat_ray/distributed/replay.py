"""The stream: an actor that lets periods arrive one by one and refuses to read ahead of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from lsat_ray.data.periods import Periods, Slice
from lsat_ray.data.reservoir import reservoir
from lsat_ray.errors import LsatError


class Stream:
    """Periods behind a watermark; the plain class, so that its rules can be tested without a cluster."""

    def __init__(self, periods: Periods, lookahead: int) -> None:
        self._periods = periods
        self._lookahead = lookahead
        self.watermark = 0
        """Newest period that has arrived."""

    def arrive(self, period: int) -> int | None:
        """Let period t arrive and move the watermark to it; repeating the call changes nothing.

        Returns:
            The period, or None when the stream has ended.

        Raises:
            LsatError: when a period would be skipped.
        """
        if period > self._periods.count:
            return None
        if period > self.watermark + 1:
            raise LsatError(f"stream: period {period} cannot arrive before period {self.watermark + 1}")
        self.watermark = max(self.watermark, period)
        return period

    def check(self, slices: Sequence[Slice], as_of: int) -> None:
        """Refuse slices that are newer than the reader's time or than the watermark.

        Raises:
            LsatError: naming the slice.
        """
        for s in slices:
            if s.period > min(as_of, self.watermark):
                raise LsatError(
                    f"stream: a reader at period {as_of} asked for {s.part} rows of period {s.period}, "
                    f"the watermark stands at {self.watermark}; this would be a look into the future"
                )

    def rows(self, s: Slice) -> Any:
        """Return a slice's samples."""
        return self._periods.rows(s.period, s.part)

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

    def ahead(self) -> int:
        """Return how many periods past the watermark may be held."""
        return min(self._lookahead, self._periods.count - self.watermark)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class StreamReplayer:
    """Replays the stream: one object in the store a slice, put there when it is first needed, passed by reference.

    Every method can be repeated, so a restarted actor goes on where its callers are.
    """

    def __init__(self, periods: list[ray.ObjectRef], lookahead: int) -> None:
        self._stream = Stream(ray.get(periods[0]), lookahead)
        self._refs: dict[Slice, ray.ObjectRef] = {}
        self._views: dict[int, ray.ObjectRef] = {}

    def arrive(self, period: int) -> int | None:
        """Let period t arrive (after a restart: and all before it); put the next `lookahead` periods in the store."""
        for t in range(self._stream.watermark + 1, period):
            self._stream.arrive(t)
        arrived = self._stream.arrive(period)
        for t in range(period, period + self._stream.ahead() + 1):
            self._put(Slice(t, "all"))
        return arrived

    def read(self, slices: list[Slice], as_of: int) -> list[ray.ObjectRef]:
        """Return references to the samples of slices, none newer than `as_of` or the watermark."""
        self._stream.check(slices, as_of)
        return [self._put(s) for s in slices]

    def view(self, as_of: int) -> ray.ObjectRef:
        """Return a reference to the periods with every later label blanked."""
        if as_of not in self._views:
            self._views = {as_of: ray.put(self._stream.view(as_of))}
        return self._views[as_of]

    def replayed(self, before: int, size: int, seed: int, as_of: int) -> ray.ObjectRef:
        """Return a reference to a reservoir of `size` rows of T_1..T_(before - 1)."""
        periods = self._stream.view(as_of)
        return ray.put(periods.samples.take(reservoir(periods, before - 1, size, seed)))

    def watermark(self) -> int:
        """Return the newest period that has arrived."""
        return self._stream.watermark

    def held(self) -> list[int]:
        """Return the periods of which rows are held, those ahead of the watermark included."""
        return sorted({s.period for s in self._refs})

    def _put(self, s: Slice) -> ray.ObjectRef:
        if s.period <= self._stream.watermark + self._stream.ahead() and s not in self._refs:
            self._refs[s] = ray.put(self._stream.rows(s))
        return self._refs[s]
