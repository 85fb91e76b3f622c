"""Several nodes, and several runs: raylets on one machine, commands that join them as a submitted job does."""

from __future__ import annotations

import os
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
from tests.chaos.kills import descendants

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]
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


def start(folder: Path, name: str, address: str | None, *sets: str, command: str = "replay") -> subprocess.Popen[str]:
    """Start the tiny run as a user does, on the cluster of an address or in one process."""
    config = folder / "tiny.yaml"
    config.write_text(CONFIG)
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k.startswith(("RAY_AUTH", "RAY_ENABLE"))}
    env |= {"RAY_ADDRESS": address} if address else {}
    line = [sys.executable, "-m", "lsat_ray", command, "--config", str(config), "--runs-dir", str(folder)]
    line += ["--name", name, "--set", f"engine.backend={'ray' if address else 'local'}"]
    line += [part for s in ("engine.kind=torch", f"serve.port={PORT}", *sets) for part in ("--set", s)]
    log = (folder / f"{name}.log").open("w")
    return subprocess.Popen(line, cwd=ROOT, env=env, stdout=log, stderr=log, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str], folder: Path, name: str) -> Path:
    code = process.wait(timeout=400)
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


def test_a_study_works_on_all_nodes_survives_the_loss_of_one_and_uses_one_that_comes_late(tmp_path: Path) -> None:
    """And what must outlive a spot node lies on the driver's: the queue and the stream."""
    seeds = "seeds=[0, 1, 2, 3, 4, 5]"
    whole = finish(start(tmp_path, "whole", None, seeds, command="study"), tmp_path, "whole")
    with cluster(1, 1, 1) as three:
        sets = (seeds, "engine.sessions=3", "engine.cpus=0.75")
        process = start(tmp_path, "spread", three.address, *sets, command="study")
        nodes = [three.head_node, *three.worker_nodes]
        eventually("a worker on every node", process, lambda: all(holds(n, "RayTrainWorker") for n in nodes))
        (home,) = [n for n in nodes if holds(n, "ray::TrainingQueue")]
        eventually("the stream beside the queue", process, lambda: holds(home, "ray::StreamReplayer"))
        lost = next(n for n in three.worker_nodes if n is not home)
        three.remove_node(lost, allow_graceful=False)
        late = three.add_node(num_cpus=1, node_ip_address="127.0.0.1")
        eventually("a worker on the node that came late", process, lambda: holds(late, "RayTrainWorker"))
        spread = finish(process, tmp_path, "spread")
    assert compare(whole, spread) == "identical"
