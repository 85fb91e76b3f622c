"""A single controller's view of the workers: what a pipeline may ask for, values in and values out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lsat_ray.data.periods import Periods
from lsat_ray.runs.search import Reached, Weighting
from lsat_ray.runs.tasks import Context, Task
from lsat_ray.scoring.model import Model

Say = Callable[[str], None]
Counts = Callable[[dict[str, int]], None]
"""Hears how many tasks are waiting, running, done and failed."""


class Backend(Protocol):
    """Workers, a stream, a search and an endpoint, in one process (`runs.local`) or on a cluster (`distributed`)."""

    def check(self, serve: bool, again: bool) -> None:
        """Look at what can be known before anything starts or is written: addresses, ports, tokens.

        Args:
            serve: the endpoint will be started.
            again: the run has begun before; what a killed process of it holds may come free within seconds.

        Raises:
            LsatError: naming the key.
        """

    def begin(self, run_dir: Path, say: Say) -> None:
        """Start what takes time and needs no backbone yet.

        Args:
            run_dir: where the backend keeps what it needs to come back.
            say: prints a line.
        """

    def open(self, context: Context, periods: Periods | None, serve: bool) -> None:
        """Tell the workers what they work on; with `serve` start the endpoint too.

        Args:
            context: of the workers.
            periods: the stream; None in the next-item task, whose workers read the log themselves.
            serve: start the endpoint.
        """

    def arrive(self, period: int) -> None:
        """Let a period arrive: from now on it may be read."""

    def do(self, tasks: Sequence[Task], present: set[str], counts: Counts | None = None) -> dict[str, Any]:
        """Do tasks and return their results by key.

        Args:
            tasks: in the order in which they should be taken.
            present: models that are in the store.
            counts: hears of progress now and then.

        Raises:
            TaskError: when tasks have failed for good; the others may be asked for again, and keep what they reached.
            LsatError: when no task can be done any more.
        """

    def announce(self, tasks: Sequence[Task], present: set[str]) -> None:
        """Hear what `do` will ask for soon; workers that have nothing to do may begin.

        Args:
            tasks: see `do`.
            present: see `do`.
        """

    def keep_search(
        self, name: str, candidates: Sequence[Weighting], label: np.ndarray, reached: Sequence[Reached]
    ) -> None:
        """Keep a search as an experiment of that name, beside what comes next.

        Args:
            name: of the experiment.
            candidates: that were measured.
            label: 0/1 [V], labels of V_t.
            reached: what each reached.
        """

    def kept(self, name: str) -> bool:
        """Return whether the experiment of that name is whole, or none is kept."""

    def publish(self, models: Sequence[Model], version: int) -> None:
        """Serve models together from now on, everywhere."""

    def serving(self) -> int | None:
        """Return the version that is served, None before the first publish."""

    def score_served(self, period: int, strategies: Sequence[str]) -> dict[str, tuple[Model, np.ndarray]]:
        """Score D_period through the endpoint: the model that answered and float64 [N], by strategy."""

    def release(self) -> None:
        """Begin to let the workers go: nothing more is to be done, and what is served stays."""

    def finish(self) -> None:
        """Wait for the searches that are kept beside.

        Raises:
            LsatError: when one could not be kept.
        """

    def close(self) -> None:
        """Let workers, stream and endpoint go; may be called at any point."""
