"""Several nodes, and several runs: raylets on one machine, commands that join them as a submitted job does."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.harness import CONFIG, compare
from tests.chaos.kills import arrived
from tests.chaos.processes import descendants

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(2700)]
ROOT = Path(__file__).resolve().parent.parent.parent
PORT = 18541


@contextmanager
def cluster(*cpus: int) -> Iterator[Any]:
    """Start a cluster with one raylet per number of logical CPUs, the first of them the head."""
    from ray.cluster_utils import Cluster

    found = Cluster()
    try:
        for each in cpus:
            found.add_node(num_cpus=each, include_dashboard=False, node_ip_address="127.0.0.1")
        yield found
    finally:
        found.shutdown()


def user() -> dict[str, str]:
    """Return a user's environment: the cluster's token, and nothing that this test session tells Ray."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k.startswith(("RAY_AUTH", "RAY_ENABLE"))}


def start(folder: Path, name: str, address: str | None, *sets: str, command: str = "replay") -> subprocess.Popen[str]:
    """Start the tiny run as a user does, on the cluster of an address or in one process."""
    config = folder / "tiny.yaml"
    config.write_text(CONFIG)
    env = user() | ({"RAY_ADDRESS": address} if address else {})
    line = [sys.executable, "-m", "lsat_ray", command, "--config", str(config), "--runs-dir", str(folder)]
    line += ["--name", name, "--set", f"engine.backend={'ray' if address else 'local'}"]
    line += [part for s in ("engine.kind=torch", f"serve.port={PORT}", *sets) for part in ("--set", s)]
    log = (folder / f"{name}.log").open("w")
    return subprocess.Popen(line, cwd=ROOT, env=env, stdout=log, stderr=log, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str], folder: Path, name: str) -> Path:
    code = process.wait(timeout=1200)
    assert code == 0, (folder / f"{name}.log").read_text()[-3000:]
    return folder / name


def eventually(what: str, process: subprocess.Popen[str], ready: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline and process.poll() is None, f"not seen: {what}"
        time.sleep(0.1)


def holds(node: Any, title: str) -> bool:
    """Say whether a process of that title runs on a node."""
    (raylet,) = node.all_processes["raylet"]
    return any(title in line for line in descendants(raylet.process.pid).values())


def test_replays_beside_a_kept_service_and_each_other_end_as_alone(tmp_path: Path) -> None:
    """The end of one killed the other, and a second replay took the first one's service away and shut it down."""
    whole = finish(start(tmp_path, "whole", None), tmp_path, "whole")
    with cluster(4) as one:
        kept = finish(start(tmp_path, "kept", one.address, "serve.keep=true"), tmp_path, "kept")
        url = f"http://127.0.0.1:{PORT}"
        before = httpx.get(f"{url}/v1/models", timeout=30).json()
        both = {name: start(tmp_path, name, one.address) for name in ("first", "second")}
        runs = [finish(process, tmp_path, name) for name, process in both.items()]
        assert httpx.get(f"{url}/v1/models", timeout=30).json() == before
        for name in both:
            assert httpx.get(f"{url}/{name}/v1/models", timeout=30).status_code == 404, "it ended its own application"
    for run in (kept, *runs):
        assert compare(whole, run) == "identical"


STUDY = ("seeds=[0, 1, 2, 3, 4, 5]", "engine.workers=2", "engine.sessions=2", "engine.cpus=0.6")
REPLAY = ("engine.sessions=2", "engine.cpus=0.6", "serve.replicas=2", "serve.cpus=0.6")


@pytest.mark.parametrize(
    ("command", "sets", "titles"),
    [("study", STUDY, ["RayTrainWorker"]), ("replay", REPLAY, ["ServeReplica", "RayTrainWorker"])],
)
def test_a_run_works_on_all_four_nodes_survives_the_loss_of_one_and_uses_one_that_comes_late(
    tmp_path: Path, command: str, sets: tuple[str, ...], titles: list[str]
) -> None:
    """Each node has room for one worker or one replica, and there are four; the first title says what is lost.

    What must outlive a spot node lies on the driver's: the queue and the stream.
    """
    whole = finish(start(tmp_path, "whole", None, *sets, command=command), tmp_path, "whole")
    with cluster(1, 1, 1, 1) as four:
        process = start(tmp_path, "spread", four.address, *sets, command=command)
        nodes = [four.head_node, *four.worker_nodes]
        eventually("work on every node", process, lambda: all(any(holds(n, t) for t in titles) for n in nodes))
        (home,) = [n for n in nodes if holds(n, "ray::TrainingQueue")]
        eventually("the stream beside the queue", process, lambda: holds(home, "ray::StreamReplayer"))
        if command == "replay":
            eventually("a period scored", process, lambda: arrived(tmp_path / "spread") >= 4)
        lost = next(n for n in four.worker_nodes if n is not home and holds(n, titles[0]))
        four.remove_node(lost, allow_graceful=False)
        late = four.add_node(num_cpus=1, node_ip_address="127.0.0.1")
        eventually("such work on the node that came late", process, lambda: holds(late, titles[0]))
        spread = finish(process, tmp_path, "spread")
    assert compare(whole, spread) == "identical"


JOIN = """
import sys
from ray._private.node import Node
from ray._private.parameter import RayParams

ports = dict(min_worker_port=0, max_worker_port=0, node_manager_port=0)  # any
what = dict(num_cpus=int(sys.argv[2]), num_gpus=0, object_store_memory=150 * 2**20, include_log_monitor=False)
where = dict(redis_address=sys.argv[1], gcs_address=sys.argv[1], node_ip_address="127.0.0.1")
Node(RayParams(**ports, **what, **where), head=False, shutdown_at_exit=True, spawn_reaper=True)
sys.stdin.read()
"""


@contextmanager
def blind(others: Any, folder: Path, cpus: int) -> Iterator[None]:
    """Let a node join that has an empty disk where the others have the folder: a mount that it alone sees."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root: a node with a disk of its own is a process with mounts of its own")
    join = shlex.join([sys.executable, "-c", JOIN, others.address, str(cpus)])
    mounted = f"mount -t tmpfs none {shlex.quote(str(folder))} && exec {join}"
    line = ["unshare", "-m", "sh", "-c", mounted]
    with subprocess.Popen(line, stdin=subprocess.PIPE, text=True) as node:  # ends with what it reads
        table = others.global_state.node_table
        eventually("the node", node, lambda: sum(n["Alive"] for n in table()) == 2, seconds=60)
        yield


@pytest.mark.parametrize(
    ("command", "room", "sets", "words"),
    [
        (
            "study",
            2,
            ("engine.workers=2", "engine.cpus=1.5"),
            "--runs-dir: .* does not see .*; runs must lie on storage",
        ),
        (
            "replay",
            1,
            ("engine.cpus=1.5", "serve.cpus=0.9"),
            "backbone.path: .* does not see .*; runs and models must lie",
        ),
    ],
)
def test_a_run_on_storage_that_one_of_two_nodes_does_not_see_is_one_line(
    tmp_path: Path, command: str, room: int, sets: tuple[str, ...], words: str
) -> None:
    """A worker (study) or a replica (replay) that lands there: it wrote, or read, where nobody else looks."""
    runs = tmp_path / "runs"
    runs.mkdir()
    with cluster(2) as one, blind(one, runs, room):
        process = start(runs, "torn", one.address, *sets, command=command)
        code, log = process.wait(timeout=1200), (runs / "torn.log").read_text()
    assert code == 2, log[-3000:]
    assert re.search(words, log.splitlines()[-1]), log[-3000:]
    assert "Traceback" not in log
