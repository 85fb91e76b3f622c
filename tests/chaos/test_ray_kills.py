"""A process of the cluster is killed or hangs: the run goes on by itself and ends as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.harness import WHOLE, Place, attempt, compare

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the tiny replay in peace, without Ray; return the folder of all runs."""
    root = tmp_path_factory.mktemp("runs")
    assert attempt(Place(root, "local"), WHOLE) == 0, (root / f"{WHOLE}.log").read_text()[-3000:]
    return root


def descendants(pid: int) -> dict[int, str]:
    """Return the command lines of all processes below one, by process id."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below, new = set(), {pid}
    while new:
        new = {p for p, parent in parents.items() if parent in new} - below
        below |= new
    lines = {}
    for p in below:
        try:
            lines[p] = Path(f"/proc/{p}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return lines


def arrived(run: Path) -> int:
    file = run / "watermark.json"
    return json.loads(file.read_text()) if file.exists() else 0


def training(run: Path) -> bool:
    return len(list(run.glob("adapters/*/manifest.json"))) >= 3


def scoring(run: Path) -> bool:
    return arrived(run) >= 3


@pytest.mark.parametrize(
    ("name", "title", "port", "now", "what"),
    [
        pytest.param("queue", "ray::TrainingQueue", 18610, training, signal.SIGKILL, marks=SLOW, id="queue"),
        pytest.param("stream", "ray::StreamReplayer", 18611, training, signal.SIGKILL, marks=SLOW, id="stream"),
        pytest.param(
            "training-worker", "RayTrainWorker", 18612, training, signal.SIGKILL, marks=SLOW, id="training-worker"
        ),
        pytest.param("replica", "ServeReplica:", 18613, scoring, signal.SIGKILL, marks=SLOW, id="replica"),
        pytest.param("proxy", "ray::ProxyActor", 18614, scoring, signal.SIGKILL, marks=SLOW, id="proxy"),
        pytest.param("controller", "ray::ServeController", 18615, scoring, signal.SIGKILL, marks=SLOW, id="controller"),
        pytest.param("trial", "ray::ImplicitFunc", 18619, Path.is_dir, signal.SIGKILL, marks=SLOW, id="trial"),
        pytest.param("hung-worker", "RayTrainWorker", 18616, training, signal.SIGSTOP, marks=SLOW, id="hung-worker"),
        pytest.param("hung-replica", "ServeReplica:", 18617, scoring, signal.SIGSTOP, marks=SLOW, id="hung-replica"),
    ],
)
def test_a_process_that_dies_or_hangs_costs_time_and_nothing_else(
    whole: Path, name: str, title: str, port: int, now: Callable[[Path], bool], what: signal.Signals
) -> None:
    """The run ended with up to 750 lines of traceback, or waited for ever."""
    place = Place(whole, "ray", port)
    killed: list[str] = []

    def kill(pid: int) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and os.path.exists(f"/proc/{pid}"):
            victims = {p: line for p, line in descendants(pid).items() if title in line}
            if victims and now(place.folder(name)):
                for victim, line in victims.items():
                    os.kill(victim, what)
                    killed.append(line)
                return
            time.sleep(0.05)

    code = attempt(place, name, meanwhile=kill)
    log = (whole / f"{name}.log").read_text()
    assert killed, f"no process {title} was found\n{log[-3000:]}"
    assert code == 0, log[-3000:]
    assert compare(place.folder(WHOLE), place.folder(name)) == "identical"
