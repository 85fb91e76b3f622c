"""The stream as a Ray actor, and the reader of it that workers hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from lsat_ray.data.periods import Periods, Slice
from lsat_ray.data.stream import Stream
from lsat_ray.data.windows import Samples

T = TypeVar("T")
ANSWER_S = 120.0
"""Seconds after which an actor that should answer at once counts as hung."""
TRIES = 5
"""Times that a reader asks again when the actor, or an object that it owned, was lost."""


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class StreamReplayer:
    """Replays the stream: one object in the store per slice, put there when first needed, passed by reference.

    The watermark is written down before a period counts as arrived, so an actor that Ray has restarted stands where
    the one before it stood.
    """

    def __init__(self, periods: bytes, lookahead: int, folder: str) -> None:
        """Begin where the actor before stood.

        Args:
            periods: pickled reference to the periods. The driver holds them, so that a restart finds them; of a plain
                reference Ray warns at every start that a restart might not.
            lookahead: periods ahead of the watermark whose samples are put in the store.
            folder: of the run, for the watermark.
        """
        self._periods: Periods = ray.get(ray.cloudpickle.loads(periods))
        self._lookahead = lookahead
        self._file = Path(folder) / "watermark.json"
        watermark = json.loads(self._file.read_text()) if self._file.exists() else 0
        self._stream = Stream(self._periods, watermark)
        self._refs: dict[Slice, ray.ObjectRef] = {}
        self._views: dict[int, ray.ObjectRef] = {}

    def rewind(self) -> None:
        """Begin before the first period: a driver that starts does so, whatever an earlier one had reached."""
        self._file.unlink(missing_ok=True)
        self._stream = Stream(self._periods)

    def arrive(self, period: int) -> None:
        """Let period t arrive and put the next `lookahead` periods in the store."""
        self._stream.arrive(period)
        draft = self._file.with_name(".watermark.json")
        draft.write_text(json.dumps(self._stream.watermark))
        draft.replace(self._file)
        for t in range(period, min(period + self._lookahead, self._periods.count) + 1):
            self._put(Slice(t, "all"))

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
        """Return a reference to a reservoir of `size` samples of T_1..T_(before - 1)."""
        return ray.put(self._stream.replayed(before, size, seed, as_of))

    def watermark(self) -> int:
        """Return the newest period that has arrived."""
        return self._stream.watermark

    def held(self) -> list[int]:
        """Return the periods whose samples are held, those ahead of the watermark included."""
        return sorted({s.period for s in self._refs})

    def _put(self, s: Slice) -> ray.ObjectRef:
        if s not in self._refs:
            self._refs[s] = ray.put(self._periods.rows(s.period, s.part))
        return self._refs[s]


class RayReader:
    """A `data.stream.Reader` over the actor; asks again when the actor died with what it had put in the store."""

    def __init__(self, replayer: Any) -> None:
        self._replayer = replayer

    def read(self, slices: Sequence[Slice], as_of: int) -> list[Samples]:
        """Return the samples of slices, none newer than `as_of` or the watermark."""
        return again(lambda: ray.get(ray.get(self._replayer.read.remote(list(slices), as_of))))

    def view(self, as_of: int) -> Periods:
        """Return the periods with every label that came after `as_of` blanked."""
        return again(lambda: ray.get(ray.get(self._replayer.view.remote(as_of))))

    def replayed(self, before: int, size: int, seed: int, as_of: int) -> Samples:
        """Return a reservoir of `size` samples of T_1..T_(before - 1)."""
        return again(lambda: ray.get(ray.get(self._replayer.replayed.remote(before, size, seed, as_of))))


def answer(actor: Any, method: str, *args: Any) -> Any:
    """Return what an actor's method returns; an actor that hangs is killed, and Ray starts it again.

    Args:
        actor: with `max_restarts` and `max_task_retries`, so that calls of others wait for it too.
        method: one that returns within seconds and may be called twice.
        args: of the method.
    """
    for _ in range(TRIES - 1):
        try:
            return ray.get(getattr(actor, method).remote(*args), timeout=ANSWER_S)
        except GetTimeoutError:
            ray.kill(actor, no_restart=False)
    return ray.get(getattr(actor, method).remote(*args), timeout=ANSWER_S)


def again(ask: Callable[[], T]) -> T:
    """Return what `ask` returns; repeat it when Ray lost an actor or an object on the way."""
    for _ in range(TRIES - 1):
        try:
            return ask()
        except (ObjectLostError, RayActorError):
            continue
    return ask()
