"""Queue and sessions under deaths: what was lost is said again, what dies again and again ends with one line."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lsat_ray.adapters.spec import AdapterSpec, Regulariser
from lsat_ray.config import EngineConfig, Experiment, Recipe
from lsat_ray.data.periods import Periods, Slice
from lsat_ray.data.stream import Stream
from lsat_ray.errors import LsatError
from lsat_ray.runs.tasks import Context, Fit, Score
from lsat_ray.scoring.model import Model
from tests.chaos.processes import descendants

pytestmark = pytest.mark.ray
TASK = Score(Model("frozen", 1, "frozen"), Slice(1, "all"))


def test_a_killed_queue_is_told_again_what_it_had_been_told(ray_cluster: Any) -> None:
    """Its calls ended the run with a traceback; its book was gone."""
    import ray

    from lsat_ray.distributed.training import LOST, TrainingQueue, pinned

    def ask(method: str, *args: Any) -> Any:
        return ray.get(getattr(queue, method).remote(*args), timeout=60)

    queue = TrainingQueue.options(**pinned()).remote(3, "log")  # type: ignore[attr-defined]
    ask("open", ["context", "stream"])
    ask("submit", [TASK], set())
    assert ask("take", 0, 30.0) == TASK
    ray.kill(queue, no_restart=False)
    deadline = time.monotonic() + 60
    while ask("context", 0.0) is not None:  # the old one may answer until it is dead
        assert time.monotonic() < deadline, "the sessions ask again until the driver has said it again"
    ask("done", TASK.key, "of the lost book")
    assert ask("wait", [TASK.key], 0.0) == LOST
    ask("open", ["context", "stream"])
    ask("submit", [TASK], set())
    assert ask("take", 0, 30.0) == TASK
    ask("done", TASK.key, 1)
    assert ask("wait", [TASK.key], 30.0) == {TASK.key: ("done", 1)}
    ray.kill(queue)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_session_that_never_gets_ready_ends_with_one_line_and_its_log(ray_cluster: Any, tmp_path: Path) -> None:
    """Only our own error was reported; and a session that always died would be restarted for ever."""
    import ray

    from lsat_ray.distributed.training import TrainingSessions

    sessions = TrainingSessions(EngineConfig(kind="torch", workers=1, max_failures=1), tmp_path)
    (tmp_path / "config.resolved.yaml").touch()
    sessions.open(Context(None, "", "", ()), ray.put(0))  # type: ignore[arg-type]
    with pytest.raises(LsatError, match=r"no session is left to train in .*sessions\.log"):
        sessions.run([TASK], set())
    sessions.close()
    log = (tmp_path / "train" / "sessions.log").read_text()
    assert log.count("session 0, rank 0, before the first task") == 2
    assert "AttributeError: 'NoneType'" in log


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_does_not_see_the_run_is_one_line_at_once(
    ray_cluster: Any, tiny_experiment: Experiment, tmp_path: Path
) -> None:
    """Each try took half a minute and ended the same; its adapters would have gone to a disk that nobody reads."""
    import ray

    from lsat_ray.distributed.training import TrainingSessions

    sessions = TrainingSessions(EngineConfig(kind="torch", workers=1), tmp_path)
    sessions.open(Context(tiny_experiment, "", str(tmp_path / "adapters"), ()), ray.put(0))
    with pytest.raises(LsatError, match=r"--runs-dir: .* does not see .*; runs must lie on storage"):
        sessions.run([TASK], set())
    sessions.close()


def test_what_a_session_had_is_done_by_the_one_that_lives(ray_cluster: Any, tmp_path: Path) -> None:
    """A session that died for good left its task "running", and the driver waited for ever."""
    import ray

    from lsat_ray.distributed.training import CLOSED, TrainingSessions

    taken = threading.Event()

    class Pair(TrainingSessions):
        """Two sessions without their workers: the first dies with a task in its hands, the second works."""

        def _fit(self, session: int) -> None:
            if session == 0:
                assert taken.is_set() or ray.get(self.queue.take.remote(0, 60.0)) == TASK
                taken.set()
                raise RuntimeError("the node is gone")
            assert taken.wait(60)
            while (task := ray.get(self.queue.take.remote(1, 1.0))) != CLOSED:
                if task is not None:
                    ray.get(self.queue.done.remote(task.key, "done by the other"))

    sessions = Pair(EngineConfig(sessions=2, workers=1), tmp_path)
    sessions.open(Context(None, "", "", ()), None)  # type: ignore[arg-type]
    assert sessions.run([TASK], set()) == {TASK.key: "done by the other"}
    sessions.close()
    assert "session 0 died for good" in (tmp_path / "train" / "sessions.log").read_text()


def test_a_search_does_not_wait_for_sessions_that_are_gone(ray_cluster: Any, tmp_path: Path) -> None:
    """A trial asked the queue for ever whether somebody had scored its candidate."""
    from lsat_ray.distributed.training import TrainingSessions

    class Gone(TrainingSessions):
        """Sessions that have given up."""

        def _fit(self, session: int) -> None:
            return

    sessions = Gone(EngineConfig(workers=1), tmp_path)
    sessions.open(Context(None, "", "", ()), None)  # type: ignore[arg-type]
    with pytest.raises(LsatError, match=r"no session is left to train in .*sessions\.log"):
        sessions.run([Score(Model("lsat-ta", 1, "single"), Slice(1, "validation"))], set())
    sessions.close()


def test_a_queue_that_hangs_is_killed_and_told_again(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver waited for its answer for ever."""
    import ray

    from lsat_ray.distributed import stream
    from lsat_ray.distributed.training import CLOSED, TrainingSessions

    class Worker(TrainingSessions):
        """A session without its workers."""

        def _fit(self, session: int) -> None:
            while (task := ray.get(self.queue.take.remote(session, 1.0))) != CLOSED:
                if task is not None:
                    ray.get(self.queue.done.remote(task.key, "done"))

    sessions = Worker(EngineConfig(workers=1), tmp_path)
    sessions.open(Context(None, "", "", ()), None)  # type: ignore[arg-type]
    assert sessions.run([TASK], set()) == {TASK.key: "done"}
    (queue,) = [p for p, line in descendants(os.getpid()).items() if "ray::TrainingQueue" in line]
    monkeypatch.setattr(stream, "ANSWER_S", 4.0)
    os.kill(queue, signal.SIGSTOP)
    try:
        assert sessions.run([TASK], set()) == {TASK.key: "done"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(queue, signal.SIGKILL)
    sessions.close()


def crowded(loop: dict[str, Any]) -> None:
    """Be a training worker; on rank 1 a training step has room for six sequences of the eight that are its share."""
    from lsat_ray.distributed.deepspeed_engine import DeepSpeedEngine
    from lsat_ray.distributed.training import session_loop

    plain = DeepSpeedEngine.logits

    def logits(engine: Any, batch: Any) -> torch.Tensor:
        if engine.rank == 1 and torch.is_grad_enabled() and len(batch.tokens) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(engine, batch)

    DeepSpeedEngine.logits = logits  # type: ignore[method-assign]
    session_loop(loop)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rank_whose_memory_runs_out_under_deepspeed_begins_the_fit_again_with_all(
    ray_cluster: Any,
    tiny_experiment: Experiment,
    tiny_periods: Periods,
    tiny_backbone_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ended the run; the other rank waits in a collective, so that no rank can go on by itself."""
    import ray

    from lsat_ray.adapters.store import AdapterStore
    from lsat_ray.distributed import training
    from lsat_ray.distributed.stream import StreamReplayer
    from lsat_ray.runs.worker import Worker
    from lsat_ray.training.engine import TorchEngine

    def spec(**changes: Any) -> AdapterSpec:
        rows = (Slice(1, "train"),), (Slice(1, "validation"),)
        recipe = Recipe(lr=5e-3, batch_size=16, epochs=1)
        config = tiny_experiment
        return AdapterSpec("b", tiny_periods.fingerprint, *rows, config.prompt, config.lora, recipe, 1, **changes)

    first = spec()
    second = spec(init=first, regulariser=Regulariser("softmax-kl", 5.0))
    for folder in ("run", "plain"):
        (tmp_path / folder / "adapters").mkdir(parents=True)
    settings = EngineConfig(kind="deepspeed", zero=2, workers=2, cpus=0.2, max_failures=0, threads=1)

    def context(folder: str) -> Context:
        return Context(tiny_experiment, str(tiny_backbone_folder), str(tmp_path / folder / "adapters"), titles)

    titles = tuple(tiny_periods.titles)
    (tmp_path / "run" / "config.resolved.yaml").touch()
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    monkeypatch.setattr(training, "session_loop", crowded)
    held = ray.put(tiny_periods)
    stream = StreamReplayer.remote(ray.cloudpickle.dumps(held), 1, str(tmp_path))  # type: ignore[attr-defined]
    ray.get(stream.arrive.remote(1))
    sessions = training.TrainingSessions(settings, tmp_path / "run")
    sessions.open(context("run"), stream)
    sessions.run([Fit(first), Fit(second)], set())  # one try per task: memory that runs out is none
    sessions.close()
    ray.kill(stream)
    log = (tmp_path / "run" / "train" / "sessions.log").read_text()
    assert log.count("OutOfMemory: training: out of memory with 1 micro-batches a step") == 1, log

    reader = Stream(tiny_periods)
    reader.arrive(1)
    worker = Worker(context("plain"), EngineConfig(kind="torch", threads=1), reader, lambda _: TorchEngine(), print)
    for one in (first, second):
        worker.run(Fit(one))
        split, whole = (AdapterStore(tmp_path / f / "adapters").load(one.digest) for f in ("run", "plain"))
        for name, value in whole.state.items():
            torch.testing.assert_close(split.state[name], value, rtol=2e-3, atol=2e-4)
