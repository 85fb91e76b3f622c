"""Queue and sessions under deaths: what was lost is said again, what dies again and again ends with one line."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lsat_ray.config import EngineConfig, Experiment
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.runs.tasks import Context, Score
from lsat_ray.scoring.model import Model
from tests.chaos.kills import descendants

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
@pytest.mark.timeout(300)
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
@pytest.mark.timeout(300)
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
