"""Warm training sessions: one long `TorchTrainer.fit` whose workers take tasks until the stream ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lsat_ray.config import EngineConfig
from lsat_ray.distributed import engines
from lsat_ray.distributed.stream import RayReader, answer
from lsat_ray.errors import LsatError
from lsat_ray.files import append_line
from lsat_ray.runs.folder import RESOLVED
from lsat_ray.runs.tasks import Context, Task, TaskBook, TaskError

CLOSED, LOST = "closed", "lost"
WAIT_S = 2.0
"""Seconds after which the driver, while it waits, looks whether anybody is left who could answer."""
START_S = 1800.0
"""Seconds in which the first session must have started; a cluster that scales up takes minutes."""
END_S = 60.0
"""Seconds that sessions have to end."""


def pinned() -> dict[str, Any]:
    """Return the options of an actor that belongs on the driver's node: under `ray job submit` the head, not a spot.

    Where that node is lost the driver is lost with it. A soft affinity means nothing for an actor that asks for no CPU:
    Ray 2.60 then starts it on any node.
    """
    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node, soft=False)}


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class TrainingQueue:
    """The task book behind one address; takers and waiters sleep until something changes.

    An actor that Ray has restarted holds an empty book and no context. The driver, which keeps both, sees that and says
    them again; a session's answer to a task that is not there yet is dropped, and the task is done again (what it had
    published is found in the store).
    """

    def __init__(self, tries: int, log: str) -> None:
        self._tries = tries
        self._book = TaskBook(tries, log)
        self._context: tuple[Context, Any] | None = None
        self._changed = asyncio.Condition()
        self._starts: dict[int, int] = {}
        self._refused = ""

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

    async def begin(self, session: int) -> bool:
        """Give back what a restarted session had taken; False when it has died too often before it was ready."""
        self._book.give_back(session, "its worker died")
        self._starts[session] = self._starts.get(session, 0) + 1
        await self._wake()
        return self._starts[session] <= self._tries

    async def ready(self, session: int) -> int:
        """Hear that a session has loaded its model; return the micro-batches that its steps need at least."""
        self._starts[session] = 0
        return self._book.micro_batches

    async def refuse(self, reason: str) -> None:
        """Hear that a session cannot work where it was placed, however often it is started."""
        self._refused = reason

    async def began(self) -> tuple[bool, str]:
        """Return whether any session has ever started, and why one refuses to work."""
        return bool(self._starts), self._refused

    async def context(self, timeout: float) -> tuple[Context, Any] | str | None:
        """Return context and stream once they are known, `CLOSED` at the end, None after a time-out."""
        await self._until(lambda: self._context is not None or self._book.closed, timeout)
        return CLOSED if self._book.closed else self._context

    async def submit(self, tasks: list[Task], present: set[str]) -> None:
        """Add tasks; `present` names adapters that are in the store."""
        self._book.submit(tasks, present)
        await self._wake()

    async def take(self, session: int, timeout: float) -> Task | str | None:
        """Return a task, `CLOSED` at the end, or None after a time-out."""
        found: list[Task] = []

        def ready() -> bool:
            if self._book.closed:
                return True
            task = self._book.take(session)
            if task is not None:
                found.append(task)
            return task is not None

        await self._until(ready, timeout)
        return found[0] if found else (CLOSED if self._book.closed else None)

    async def done(self, key: str, result: Any) -> None:
        """Record a result."""
        self._book.done(key, result)
        await self._wake()

    async def fail(self, key: str, reason: str) -> None:
        """Record that a task cannot be done, however often it is tried."""
        self._book.fail(key, reason)
        await self._wake()

    async def give_back(self, session: int, reason: str) -> None:
        """Take back what a session had taken: it stumbled, or has died for good."""
        self._book.give_back(session, reason)
        await self._wake()

    async def split(self, session: int, micro_batches: int) -> None:
        """Take back what did not fit a session's memory; its next start hears of smaller micro-batches."""
        self._book.split(session, micro_batches)
        await self._wake()

    async def wait(self, keys: list[str], timeout: float) -> dict[str, Any] | str | None:
        """Return {key: (state, result)} once all are done or one failed, None after a time-out, `LOST` if unknown."""
        if self._context is None or not self._book.knows(keys):
            return LOST
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
    """The driver's side: start sessions, submit tasks, wait for results; it keeps what a lost queue must hear again."""

    def __init__(self, config: EngineConfig, run_dir: Path) -> None:
        self._config = config
        self._run_dir = Path(run_dir).resolve()
        self._log = self._run_dir / "train" / "sessions.log"
        self._tries = config.max_failures + 1
        self.queue = TrainingQueue.options(**pinned()).remote(self._tries, str(self._log))  # type: ignore[attr-defined]
        self._context: list[Any] = []
        self._closed = False
        self._started, self._began = time.monotonic(), False
        self._threads: list[threading.Thread] = []
        self._errors: list[str] = []
        for session in range(config.sessions):
            thread = threading.Thread(target=self._keep, args=(session,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _keep(self, session: int) -> None:
        """Keep a session alive; one that dies for good gives back what it had."""
        for _ in range(self._tries):
            try:
                self._fit(session)
                break  # the queue is closed, or the session has given up
            except BaseException as error:  # noqa: BLE001 - the driver's wait reports it
                self._errors.append(note(self._log, f"session {session} died for good", error))
            with contextlib.suppress(RayError):  # the cluster is gone: the driver hears of that by itself
                answer(self.queue, "give_back", session, "its session died")
            if self._closed:
                break

    def _fit(self, session: int) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        engine = self._config
        resources: dict[str, float] = {"CPU": engine.cpus}
        if engine.gpus:
            resources["GPU"] = engine.gpus
        loop = {"queue": self.queue, "session": session, "engine": engine, "log": str(self._log)}
        trainer = TorchTrainer(
            session_loop,
            train_loop_config=loop,
            scaling_config=ScalingConfig(
                num_workers=engine.workers, use_gpu=engine.gpus > 0, resources_per_worker=resources
            ),
            torch_config=TorchConfig(backend="nccl" if engine.gpus else "gloo"),
            run_config=RunConfig(
                name=f"session{session}",
                storage_path=str(self._run_dir / "train"),
                failure_config=FailureConfig(max_failures=-1),  # the queue counts, by task
            ),
        )
        trainer.fit()

    def open(self, context: Context, replayer: Any) -> None:
        """Tell the sessions what they work on."""
        self._context = [context, replayer]
        ray.get(self.queue.open.remote(self._context), timeout=START_S)  # it may still be starting

    def announce(self, tasks: Sequence[Task], present: set[str]) -> None:
        """Submit tasks whose results `run` will ask for."""
        answer(self.queue, "submit", list(tasks), present)

    def run(
        self,
        tasks: Sequence[Task],
        present: set[str],
        counts: Callable[[dict[str, int]], None] | None = None,
        look: Callable[[], Any] | None = None,
    ) -> dict[str, Any]:
        """Submit tasks, wait for all, and return their results by key.

        Args:
            tasks: in the order in which they should be taken.
            present: models that are in the store.
            counts: hears every two seconds how many tasks are waiting, running and done.
            look: is called every two seconds: looks after others that the sessions wait for.

        Raises:
            TaskError: when tasks failed; the others go on, and their results wait for the next call.
            LsatError: when no session has started in time, or all have died.
        """
        if not tasks:
            return {}
        keys = [t.key for t in tasks]
        answer(self.queue, "submit", list(tasks), present)
        while not isinstance(states := answer(self.queue, "wait", keys, WAIT_S), dict):
            if states == LOST:
                answer(self.queue, "open", self._context)
                answer(self.queue, "submit", list(tasks), present)
                continue
            if counts:
                counts(answer(self.queue, "counts"))
            self._look()
            if look:
                look()
        failed = {k: str(result) for k, (state, result) in states.items() if state == "failed"}
        answer(self.queue, "forget", list(failed or keys))
        if failed:
            raise TaskError(failed)
        self._began = True
        return {k: result for k, (_, result) in states.items()}

    def _look(self) -> None:
        """Look whether anybody is left to answer.

        Raises:
            LsatError: when nobody is.
        """
        began, refused = answer(self.queue, "began")
        if refused:
            raise LsatError(refused)
        self._began = self._began or began
        if not any(t.is_alive() for t in self._threads):
            reason = self._errors[0] if self._errors else "their workers died again and again before they were ready"
            raise LsatError(
                f"training: no session is left to train in ({reason}); see {self._log}, the same command resumes"
            )
        if not self._began and time.monotonic() - self._started > START_S:
            engine = self._config
            raise LsatError(
                f"training: no session has started in {START_S / 60:.0f} min; look at `ray status`: is there room for "
                f"{engine.workers} workers with {engine.cpus:g} CPUs and {engine.gpus:g} GPUs each?"
            )

    def close(self) -> None:
        """Let the workers end and wait for them."""
        self._closed = True
        deadline = time.monotonic() + END_S
        while any(t.is_alive() for t in self._threads) and time.monotonic() < deadline:
            answer(self.queue, "close")  # again and again: a queue that was lost has forgotten it
            for thread in self._threads:
                thread.join(timeout=WAIT_S)
        ray.kill(self.queue)  # a driver that runs many studies would carry one along for each


def session_loop(loop: dict[str, Any]) -> None:
    """Take tasks until the queue closes; the train function of every worker."""
    from ray import train
    from torch import distributed

    queue, session, engine, log = loop["queue"], loop["session"], loop["engine"], Path(loop["log"])
    rank = train.get_context().get_world_rank()

    def shared(call: Any) -> Any:
        """Let rank 0 ask and tell the others, so that all ranks do the same."""
        answer = [ray.get(call()) if rank == 0 else None]
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.broadcast_object_list(answer, src=0)
        return answer[0]

    def stumble(what: str, error: Exception) -> str:
        return note(log, f"session {session}, rank {rank}, {what}", error)

    if not shared(lambda: queue.begin.remote(session)):
        return
    engines.load(engine)
    from lsat_ray.runs.block_worker import BlockWorker
    from lsat_ray.runs.worker import Worker
    from lsat_ray.training.step import OutOfMemory

    context = None
    while context is None:
        context = shared(lambda: queue.context.remote(5.0))
    if context == CLOSED:
        return
    work, replayer = context
    try:
        _see(log.parent.parent)
        stage = engines.stage(engine, work, rank)
        make = partial(engines.make, engine, stage)
        say = partial(print, flush=True)  # Ray shows it
        worker: Worker | BlockWorker
        if work.config.data.format == "blocks":
            worker = BlockWorker(work, engine, say)
        else:
            worker = Worker(work, engine, RayReader(replayer), make, say, engines.sharding(engine, stage))
    except LsatError as error:
        stumble("before the first task", error)
        ray.get(queue.refuse.remote(str(error)))
        raise
    except Exception as error:
        stumble("before the first task", error)
        raise
    needed = shared(lambda: queue.ready.remote(session))
    worker.settings = engine.model_copy(update={"micro_batches": max(engine.micro_batches, needed)})
    while (task := shared(lambda: queue.take.remote(session, 10.0))) != CLOSED:
        if task is None:
            continue
        try:
            result = worker.run(task)
        except OutOfMemory as error:  # the others wait in a collective: Ray Train ends all ranks and starts them again
            stumble(task.name, error)
            say(f"training: out of memory; the fit begins again with {error.micro_batches} micro-batches a step")
            ray.get(queue.split.remote(session, error.micro_batches))
            raise
        except LsatError as error:  # bad input: another try would end the same
            stumble(task.name, error)
            ray.get(queue.fail.remote(task.key, str(error)))
            raise
        except Exception as error:
            ray.get(queue.give_back.remote(session, stumble(task.name, error)))
            raise
        if rank == 0:
            ray.get(queue.done.remote(task.key, result))


def _see(run: Path) -> None:
    """Check that this machine sees the run's folder: on a disk of its own, nobody would read what it writes.

    Raises:
        LsatError: naming machine and folder.
    """
    if not (run / RESOLVED).is_file():  # the driver has written it; Ray Train creates the folder itself
        raise LsatError(
            f"--runs-dir: {socket.gethostname()} does not see {run}; runs must lie on storage that every node sees "
            "under the same path"
        )


def note(log: Path, where: str, error: BaseException) -> str:
    """Write an error with its traceback to the sessions' log; return it in one line."""
    lines = "".join(traceback.format_exception(error)).rstrip().replace("\n", "\n    ")
    append_line(log, f"{where}:\n    {lines}")
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
