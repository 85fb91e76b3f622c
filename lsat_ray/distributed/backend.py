"""The Ray backend: stream actor, training sessions (Train, DeepSpeed), search (Tune) and endpoint (Serve)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from lsat_ray.config import Experiment
from lsat_ray.data.periods import Periods, Slice
from lsat_ray.distributed import cluster, search, serving
from lsat_ray.distributed.stream import StreamReplayer, again, answer
from lsat_ray.distributed.training import START_S, TrainingSessions, pinned
from lsat_ray.errors import LsatError
from lsat_ray.runs.backend import Counts, Say
from lsat_ray.runs.search import Reached, Weighting
from lsat_ray.runs.tasks import Context, Task
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.served import read_current


class RayBackend:
    """Workers, stream, search and endpoint on a Ray cluster: the one that is connected, or one that it starts here."""

    def __init__(self, config: Experiment) -> None:
        self.config = config
        self._here = False
        self._sessions: TrainingSessions | None = None
        self._replayer: Any = None
        self._endpoint: Future[Any] | None = None
        self._periods: Any = None
        self._tune = ThreadPoolExecutor(1)
        self._searches: list[Future[None]] = []
        self._ending: Future[None] | None = None

    def check(self, serve: bool, again: bool) -> None:
        """Check the token's variable, the address and the port."""
        if serve:
            serving.check(self.config, again)

    def begin(self, run_dir: Path, say: Say) -> None:
        """Join the cluster or start one, and let the training sessions start."""
        self._run_dir, self._say = run_dir, say
        self._here = cluster.connect()
        say("starting the training sessions")
        self._sessions = TrainingSessions(self.config.engine, run_dir)

    def open(self, context: Context, periods: Periods | None, serve: bool) -> None:
        """Start the stream, tell the sessions what they work on, and start the endpoint."""
        assert self._sessions is not None
        lookahead = self.config.replay.lookahead
        self._periods = ray.put(periods)  # held: an actor that is restarted reads it again
        actor: Any = StreamReplayer
        self._replayer = actor.options(**pinned()).remote(
            ray.cloudpickle.dumps(self._periods), lookahead, str(self._run_dir)
        )
        ray.get(self._replayer.rewind.remote(), timeout=START_S)
        self._sessions.open(context, self._replayer)
        if serve:
            weights, store = Path(context.backbone), Path(context.store)
            start = partial(serving.start, self.config, weights, context.titles, store, self._run_dir)
            self._endpoint = ThreadPoolExecutor(1).submit(start)  # the first periods are trained on meanwhile

    def arrive(self, period: int) -> None:
        """Let a period arrive."""
        answer(self._replayer, "arrive", period)

    def do(self, tasks: Sequence[Task], present: set[str], counts: Counts | None = None) -> dict[str, Any]:
        """Let the sessions do tasks."""
        assert self._sessions is not None
        return self._sessions.run(tasks, present, counts, partial(answer, self._replayer, "watermark"))

    def announce(self, tasks: Sequence[Task], present: set[str]) -> None:
        """Let the sessions begin."""
        assert self._sessions is not None
        self._sessions.announce(tasks, present)

    def keep_search(
        self, name: str, candidates: Sequence[Weighting], label: np.ndarray, reached: Sequence[Reached]
    ) -> None:
        """Run the Tune experiment in a thread: the choice is made, and nobody waits for Tune's start."""
        root, select = self._run_dir / "search", self.config.search.select
        self._searches.append(self._tune.submit(search.keep, name, candidates, label, reached, root, select))

    def kept(self, name: str) -> bool:
        """Return whether Tune has ended the experiment."""
        return search.kept(name, self._run_dir / "search")

    def publish(self, models: Sequence[Model], version: int) -> None:
        """Let every replica prepare the models, commit, and flip."""
        serving.publish(self._handle(), models, version, self.config.serve.replicas, self._run_dir)

    def serving(self) -> int | None:
        """Return the version that was committed last."""
        current = read_current(self._run_dir)
        return None if current is None else current.version

    def score_served(self, period: int, strategies: Sequence[str]) -> dict[str, tuple[Model, np.ndarray]]:
        """Score D_period in bulk through the endpoint."""

        def ask() -> Any:
            (samples,) = answer(self._replayer, "read", [Slice(period, "all")], period)
            return serving.score_bulk(self._handle(), samples, list(strategies), self.config.serve.replicas)

        bulk = again(ask)
        return {name: (bulk.models[name], bulk.scores[name]) for name in strategies}

    def release(self) -> None:
        """Let the sessions end while the report is written."""
        if self._sessions:
            self._ending = ThreadPoolExecutor(1).submit(self._sessions.close)

    def finish(self) -> None:
        """Wait for Tune, which ends each experiment in time."""
        for one in self._searches:
            one.result()

    def close(self) -> None:
        """End the sessions, the stream, the endpoint unless it is to be kept, and the cluster that was started here."""
        self._tune.shutdown(cancel_futures=True)
        if self._ending:
            wait([self._ending])
        elif self._sessions:
            self._sessions.close()
        if self._replayer:
            ray.kill(self._replayer)
        keep = self.config.serve.keep
        if self._endpoint:
            up = self._endpoint in wait([self._endpoint], self._patience()).done and not self._endpoint.exception()
            stays = keep or self._here  # with the cluster that was started here it ends
            if up and not stays and not serving.stop(self.config):
                self._say(f"the endpoint {self.config.name} has not ended; look at `serve status`")
        if self._here and not keep:
            cluster.disconnect()
        self._sessions = self._replayer = self._endpoint = self._ending = None

    def _handle(self) -> Any:
        """Return the endpoint's handle, once it is up."""
        assert self._endpoint is not None
        if not self._endpoint.done():
            self._say("waiting for the endpoint")
        if not wait([self._endpoint], self._patience()).done:
            raise LsatError("serve: Serve's controller does not answer; end it with `serve shutdown`; the run resumes")
        return self._endpoint.result()

    def _patience(self) -> float:
        """Return the seconds after which a start of the endpoint that has its own deadline counts as hung."""
        return self.config.serve.start_s + serving.STOP_S
