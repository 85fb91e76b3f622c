"""`ray job submit`: a whole cluster is killed in the middle of a job, and the same command goes on in a new one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.harness import compare
from tests.chaos.kills import arrived

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parent.parent.parent
RAY = str(Path(sys.executable).parent / "ray")
SERVE = 8143


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def bare() -> dict[str, str]:
    """Return a user's environment: the token, and nothing that this test session tells Ray."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k.startswith(("RAY_AUTH", "RAY_ENABLE"))}
    return env | {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}


def marked(mark: str) -> list[int]:
    """Return the processes that were started, by whomever, from one whose environment holds the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def kill(mark: str) -> int:
    """Kill every process with the mark until none is left; return how many there were."""
    killed = set[int]()
    deadline = time.monotonic() + 60
    while pids := marked(mark):
        assert time.monotonic() < deadline, f"not gone: {pids}"
        killed.update(pids)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.2)
    return len(killed)


@contextmanager
def started(port: int, dashboard: int, agent: int, client: int) -> Iterator[str]:
    """Start a cluster as an administrator does, and yield the mark of all its processes; kill them at the end."""
    mark, temporary = uuid.uuid4().hex, Path(tempfile.mkdtemp(prefix="ray"))  # short: Ray's sockets lie in it
    line = [RAY, "start", "--head", "--num-cpus=4", "--node-ip-address=127.0.0.1", f"--port={port}"]
    line += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    line += [f"--temp-dir={temporary}", f"--ray-client-server-port={client}", "--disable-usage-stats"]
    try:
        done = subprocess.run(line, env={**bare(), "MARK": mark}, capture_output=True, text=True, timeout=720)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        yield mark
    finally:
        kill(mark)
        shutil.rmtree(temporary, ignore_errors=True)


def options(runs: Path, name: str) -> list[str]:
    """Return what the command says of the run; plain torch, so that one process ends with the same bytes."""
    given = ["--config", "jobs/configs/smoke.yaml", "--runs-dir", str(runs), "--name", name]
    return [*given, "--set", "engine.kind=torch"]


def submit(dashboard: int, runs: Path, name: str) -> subprocess.Popen[str]:
    """Give the documented command."""
    line = [RAY, "job", "submit", "--address", f"http://127.0.0.1:{dashboard}", "--working-dir", "."]
    line += ["--runtime-env", "cluster/runtime_env.yaml", "--", "python", "jobs/stream_replay.py"]
    line += [*options(runs, name), "--set", f"serve.port={SERVE}"]
    log = (runs / f"{name}.log").open("a")
    return subprocess.Popen(line, cwd=ROOT, env=bare(), stdout=log, stderr=log, text=True)


def told(runs: Path, name: str) -> str:
    return (runs / f"{name}.log").read_text()[-3000:]


def test_a_job_goes_on_in_a_new_cluster_after_the_whole_one_was_killed(tmp_path: Path) -> None:
    whole = [sys.executable, "-m", "lsat_ray", "replay", *options(tmp_path, "whole"), "--set", "engine.backend=local"]
    done = subprocess.run(whole, cwd=ROOT, env=bare(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    ports = free_ports(4)
    with started(*ports) as mark:
        broken = submit(ports[1], tmp_path, "broken")
        deadline = time.monotonic() + 400
        while arrived(tmp_path / "broken") < 4:
            assert broken.poll() is None and time.monotonic() < deadline, told(tmp_path, "broken")
            time.sleep(0.05)
        assert kill(mark) > 10, "driver, raylet, workers, replica and dashboard die together"
        assert broken.wait(timeout=360) != 0
    records = (tmp_path / "broken" / "ledger.jsonl").read_text().count("\n")
    assert 0 < records < (tmp_path / "whole" / "ledger.jsonl").read_text().count("\n")
    assert not (tmp_path / "broken" / "metrics.parquet").exists()
    with started(*ports):
        assert submit(ports[1], tmp_path, "broken").wait(timeout=1500) == 0, told(tmp_path, "broken")
    assert "RESUMED seed 0, period" in (tmp_path / "broken.log").read_text()
    assert compare(tmp_path / "whole", tmp_path / "broken") == "identical"
    assert json.loads((tmp_path / "broken" / "current.json").read_text())["version"] == 4
