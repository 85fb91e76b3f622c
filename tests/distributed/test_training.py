"""Queue and sessions under deaths: what was lost is said again, what dies again and again ends with one line."""

import time
from pathlib import Path
from typing import Any

import pytest

from lsat_ray.config import EngineConfig, Experiment
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.runs.tasks import Context, Score
from lsat_ray.scoring.model import Model

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
def test_a_session_that_never_gets_ready_ends_with_one_line_and_its_log(
    ray_cluster: Any, tiny_experiment: Experiment, tmp_path: Path
) -> None:
    """Only our own error was reported; and a session that always died would be restarted for ever."""
    import ray

    from lsat_ray.distributed.training import TrainingSessions

    sessions = TrainingSessions(EngineConfig(kind="torch", workers=1, max_failures=1), tmp_path)
    sessions.open(Context(tiny_experiment, str(tmp_path / "no-backbone"), str(tmp_path / "adapters"), ()), ray.put(0))
    with pytest.raises(LsatError, match=r"no session is left to train in .*sessions\.log"):
        sessions.run([TASK], set())
    sessions.close()
    log = (tmp_path / "train" / "sessions.log").read_text()
    assert log.count("session 0, rank 0, before the first task") == 2
    assert "no-backbone" in log
