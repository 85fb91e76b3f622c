"""The local backend: everything in this process, with plain torch; no Ray, no DeepSpeed, no ports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.config import Experiment
from lsat_ray.data.periods import Periods, Slice
from lsat_ray.data.stream import Stream
from lsat_ray.errors import LsatError
from lsat_ray.runs.backend import Counts, Say
from lsat_ray.runs.block_worker import BlockWorker
from lsat_ray.runs.search import Reached, Weighting
from lsat_ray.runs.tasks import Context, Fit, Task, TaskBook, TaskError
from lsat_ray.runs.worker import Worker, by_row
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.recommender import Recommender
from lsat_ray.scoring.served import Served, commit, read_current, succeeding
from lsat_ray.training.engine import TorchEngine


class LocalBackend:
    """One process, which stands for all workers of a session and answers as the endpoint would."""

    def __init__(self, config: Experiment) -> None:
        one = {"kind": "torch", "sessions": 1}
        self.config = config.model_copy(update={"engine": config.engine.model_copy(update=one)})

    def check(self, serve: bool, again: bool) -> None:
        """Find nothing wrong: there is no port and no token."""

    def begin(self, run_dir: Path, say: Say) -> None:
        """Note where the run lies; there is nothing to start."""
        self._run_dir, self._say = run_dir, say

    def open(self, context: Context, periods: Periods | None, serve: bool) -> None:
        """Load the backbone."""
        self._book = TaskBook()
        self._served: Served | None = None
        if periods is None:
            self._run: Callable[[Task], dict[str, Any]] = BlockWorker(context, self.config.engine, self._say).run
            return
        self._stream = Stream(periods)
        self._worker = Worker(context, self.config.engine, self._stream, self._engine, self._say)
        self._run = self._worker.run
        # The endpoint wears its adapters on the worker's backbone; a 7B model need not be there twice.
        self._endpoint = Recommender(self._worker.model, self._worker.store, self.config.engine.batch_tokens)
        if serve and (kept := read_current(self._run_dir)) is not None:
            self._endpoint.prepare(kept.models)
            self._served = kept

    def _engine(self, model: AdaptedBackbone) -> TorchEngine:
        del model
        return TorchEngine(self.config.engine.workers)

    def arrive(self, period: int) -> None:
        """Move the watermark."""
        self._stream.arrive(period)

    def do(self, tasks: Sequence[Task], present: set[str], counts: Counts | None = None) -> dict[str, Any]:
        """Do tasks one after the other, each once what it needs is there."""
        book = self._book
        book.submit(list(tasks), present)
        while (task := book.take(0)) is not None:
            try:
                book.done(task.key, self._run(task))
            except Exception as error:
                book.forget([task.key])
                if self.config.engine.on_failure == "stop" or not isinstance(task, Fit):
                    raise
                text = " ".join(str(error).split())
                raise TaskError({task.key: f"{task.name}: {type(error).__name__}: {text[:300]}"}) from error
            if counts:
                counts(book.counts())
        keys = [t.key for t in tasks]
        if not book.finished(keys):
            stuck = next(t for t in tasks if book.entries[t.key].state == "waiting")
            missing = next(n for n in stuck.needs if n not in book.present)
            raise LsatError(f"task {stuck.key[:12]}: it needs model {missing[:12]}, which nothing trains")
        results = {k: book.entries[k].result for k in keys}
        book.forget(keys)
        return results

    def announce(self, tasks: Sequence[Task], present: set[str]) -> None:
        """Begin nothing: one process does one thing after the other."""

    def keep_search(
        self, name: str, candidates: Sequence[Weighting], label: np.ndarray, reached: Sequence[Reached]
    ) -> None:
        """Keep nothing: the table of coefficients has it all."""

    def kept(self, name: str) -> bool:
        """Return that nothing is missing."""
        return True

    def publish(self, models: Sequence[Model], version: int) -> None:
        """Load and verify the models, then serve them."""
        following = succeeding(self._run_dir, models, version)
        self._endpoint.prepare(models)
        commit(self._run_dir, following)
        self._served = following

    def serving(self) -> int | None:
        """Return the version that is served."""
        return None if self._served is None else self._served.version

    def score_served(self, period: int, strategies: Sequence[str]) -> dict[str, tuple[Model, np.ndarray]]:
        """Score D_period with what is served."""
        assert self._served is not None, "nothing was published"
        models = {name: self._served.select(name) for name in strategies}
        (samples,) = self._stream.read([Slice(period, "all")], period)
        encoded = self._worker.encoder.scoring(samples)
        scores = self._endpoint.scores(list(models.values()), encoded)
        return {n: (m, by_row(encoded.row, s)[1]) for (n, m), s in zip(models.items(), scores, strict=True)}

    def release(self) -> None:
        """Keep the worker: it is this process."""

    def finish(self) -> None:
        """Nothing runs beside this process."""

    def close(self) -> None:
        """Nothing runs beside this process."""
