"""The head of the cluster dies: whatever the driver waits for, it ends with one line, and the same command goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import rayless
from desks import eventually

from lsat_ray.distributed.cluster import LOST
from tests.chaos.harness import WHOLE, Place, attempt, compare
from tests.chaos.kills import arrived, training, undisturbed
from tests.chaos.processes import lose_head, process_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the head under /proc"),
]

WAITS = """
import time

from lsat_ray.distributed import cluster

cluster.settle()
cluster.PAUSE_S, cluster.LOOK_S = 0.2, 5.0
assert cluster.connect()
import ray


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Actor:
    def answer(self):
        time.sleep(3600)


answer = Actor.remote().answer.remote()
print("waiting", flush=True)
ray.get(answer)
"""


@pytest.mark.timeout(300)
def test_a_driver_that_waits_ends_with_one_line_and_takes_its_cluster_along() -> None:
    """Ray ended it after a minute, in its own words."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["PYTHONPATH"] = str(rayless.ROOT)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=pipe, text=True, env=environment) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "waiting\n"
        raylet = process_of(driver.pid, "raylet/raylet")
        lose_head(driver.pid)
        said, _ = driver.communicate(timeout=240)
    assert driver.returncode == 2
    assert said == f"error: {LOST}\n"
    assert raylet
    eventually("its raylet is gone", lambda: not running(raylet))


def running(pid: int) -> bool:
    """Return whether a process is there and no zombie, which has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def strike(run: Path, pid: int, now: Callable[[Path], bool]) -> None:
    """Kill the head once it is time."""
    while not (process_of(pid, "gcs_server") and now(run)):
        assert Path(f"/proc/{pid}").exists(), "the run has ended before it was time"
        time.sleep(0.05)
    lose_head(pid)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("now", [training, lambda run: arrived(run) >= 4], ids=["training", "late"])
def test_a_replay_that_loses_its_head_goes_on_by_the_same_command(tmp_path: Path, now: Callable[[Path], bool]) -> None:
    undisturbed(tmp_path)
    place = Place(tmp_path, "ray", 18630)
    assert attempt(place, "struck", meanwhile=lambda pid: strike(place.folder("struck"), pid, now)) == 2
    assert (tmp_path / "struck.log").read_text().strip().splitlines()[-1] == f"error: {LOST}"
    assert attempt(place, "struck") == 0
    assert compare(place.folder(WHOLE), place.folder("struck")) == "identical"
