"""Warm training sessions: one long `TorchTrainer.fit` whose workers take tasks until the stream ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray

from lsat_ray.config import EngineConfig
from lsat_ray.distributed.stream import RayReader
from lsat_ray.errors import LsatError
from lsat_ray.runs.tasks import Context, Task, TaskBook
from lsat_ray.training.engine import DataParallel, Engine, TorchEngine

CLOSED = "closed"


@ray.remote(num_cpus=0)
class TrainingQueue:
    """The task book behind one address; takers and waiters sleep until something changes."""

    def __init__(self) -> None:
        self._book = TaskBook()
        self._context: tuple[Context, Any] | None = None
        self._changed = asyncio.Condition()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, ready: Any, timeout: float) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(ready), timeout)
            except TimeoutError:
                return

    async def open(self, context: list[Any]) -> None:
        """Say what the sessions work on: the context, and the actor of the stream."""
        self._context = (context[0], context[1])
        await self._wake()

    async def context(self, timeout: float) -> tuple[Context, Any] | None:
        """Return context and stream once they are known, None after a time-out."""
        await self._until(lambda: self._context is not None or self._book.closed, timeout)
        return self._context

    async def submit(self, tasks: list[Task], present: set[str]) -> None:
        """Add tasks; `present` names adapters that are in the store."""
        self._book.submit(tasks, present)
        await self._wake()

    async def take(self, session: int, timeout: float) -> Task | str | None:
        """Return a task, `CLOSED` at the end, or None after a time-out."""
        found: list[Task] = []

        def ready() -> bool:
            task = self._book.take(session)
            if task is not None:
                found.append(task)
            return task is not None or self._book.closed

        await self._until(ready, timeout)
        return found[0] if found else (CLOSED if self._book.closed else None)

    async def done(self, key: str, result: Any) -> None:
        """Record a result."""
        self._book.done(key, result)
        await self._wake()

    async def fail(self, key: str, reason: str) -> None:
        """Record a failure."""
        self._book.fail(key, reason)
        await self._wake()

    async def restart(self, session: int) -> None:
        """Give back what a restarted session had taken."""
        self._book.restart(session)
        await self._wake()

    async def wait(self, keys: list[str], timeout: float) -> dict[str, Any] | None:
        """Return {key: (state, result)} once all are done or one failed, None after a time-out."""
        await self._until(lambda: self._book.finished(keys), timeout)
        if not self._book.finished(keys):
            return None
        return {k: (self._book.entries[k].state, self._book.entries[k].result) for k in keys}

    async def forget(self, keys: list[str]) -> None:
        """Drop finished tasks."""
        self._book.forget(keys)

    async def counts(self) -> dict[str, int]:
        """Return how many tasks are in each state."""
        return self._book.counts()

    async def close(self) -> None:
        """Close the queue: every session ends after its task."""
        self._book.closed = True
        await self._wake()


class TrainingSessions:
    """The driver's side: start sessions, submit tasks, wait for results."""

    def __init__(self, config: EngineConfig, run_dir: Path) -> None:
        self.queue = TrainingQueue.remote()  # type: ignore[attr-defined]
        self._config = config
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        for session in range(config.sessions):
            thread = threading.Thread(target=self._fit, args=(session, Path(run_dir).resolve()), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _fit(self, session: int, run_dir: Path) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        engine = self._config
        resources: dict[str, float] = {"CPU": engine.cpus}
        if engine.gpus:
            resources["GPU"] = engine.gpus
        trainer = TorchTrainer(
            session_loop,
            train_loop_config={"queue": self.queue, "session": session, "engine": engine},
            scaling_config=ScalingConfig(
                num_workers=engine.workers, use_gpu=engine.gpus > 0, resources_per_worker=resources
            ),
            torch_config=TorchConfig(backend="nccl" if engine.gpus else "gloo"),
            run_config=RunConfig(
                name=f"session{session}",
                storage_path=str(run_dir / "train"),
                failure_config=FailureConfig(max_failures=engine.max_failures),
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - the driver's wait reports it
            self._errors.append(error)

    def open(self, context: Context, replayer: Any) -> None:
        """Tell the sessions what they work on."""
        ray.get(self.queue.open.remote([context, replayer]))

    def run(
        self, tasks: Sequence[Task], present: set[str], counts: Callable[[dict[str, int]], None] | None = None
    ) -> dict[str, Any]:
        """Submit tasks, wait for all, and return their results by key.

        Args:
            tasks: in the order in which they should be taken.
            present: models that are in the store.
            counts: hears every two seconds how many tasks are waiting, running and done.

        Raises:
            LsatError: when a task failed or all sessions have died.
        """
        if not tasks:
            return {}
        keys = [t.key for t in tasks]
        ray.get(self.queue.submit.remote(list(tasks), present))
        while (states := ray.get(self.queue.wait.remote(keys, 2.0))) is None:
            if counts:
                counts(ray.get(self.queue.counts.remote()))
            if not any(t.is_alive() for t in self._threads):
                reason = self._errors[0] if self._errors else "they ended early"
                raise LsatError(f"training: no session is left to train in ({reason}); the same command resumes")
        for state, result in states.values():
            if state == "failed":
                raise LsatError(str(result))
        ray.get(self.queue.forget.remote(keys))
        return {k: result for k, (_, result) in states.items()}

    def close(self) -> None:
        """Let the workers end and wait for them."""
        ray.get(self.queue.close.remote())
        for thread in self._threads:
            thread.join(timeout=60)
        ray.kill(self.queue)  # a driver that runs many studies would carry one along for each


def session_loop(loop: dict[str, Any]) -> None:
    """Take tasks until the queue closes; the train function of every worker."""
    from ray import train
    from torch import distributed

    queue, session, engine = loop["queue"], loop["session"], loop["engine"]
    rank = train.get_context().get_world_rank()

    def shared(call: Any) -> Any:
        """Let rank 0 ask and tell the others, so that all ranks do the same."""
        answer = [ray.get(call()) if rank == 0 else None]
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.broadcast_object_list(answer, src=0)
        return answer[0]

    shared(lambda: queue.restart.remote(session))
    from lsat_ray.runs.worker import Worker  # what takes seconds, while the driver still builds the backbone

    context = None
    while context is None:
        context = shared(lambda: queue.context.remote(5.0))
        if context is None and shared(lambda: queue.take.remote(session, 0.0)) == CLOSED:
            return
    work, replayer = context
    make = partial(_engine, engine, work)
    worker = Worker(work, engine, RayReader(replayer), make, partial(print, flush=True))  # Ray shows it on the driver
    while (task := shared(lambda: queue.take.remote(session, 10.0))) != CLOSED:
        if task is None:
            continue
        try:
            result = worker.run(task)
        except LsatError as error:
            ray.get(queue.fail.remote(task.key, str(error)))
            raise
        if rank == 0:
            ray.get(queue.done.remote(task.key, result))


def _engine(settings: EngineConfig, context: Context, model: Any) -> Engine:
    """Return the configured engine; rank 0 says which ZeRO stage was chosen where that was left open."""
    if settings.kind == "torch":
        return DataParallel() if settings.workers > 1 else TorchEngine()
    from lsat_ray.distributed.deepspeed_engine import DeepSpeedEngine

    if settings.zero != "auto":
        return DeepSpeedEngine(settings.zero)
    from lsat_ray.training.memory import available, choose

    config = context.config
    stage, why = choose(model, settings, config.recipe, config.prompt, available(model.device, settings))
    engine = DeepSpeedEngine(stage)
    if engine.rank == 0:
        print(f"engine.zero auto: {why}", flush=True)  # noqa: T201 - Ray shows it on the driver
    return engine
