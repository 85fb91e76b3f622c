"""`lsat-ray serve RUN`: a run's folder over HTTP, in one process without Ray and on a cluster that loses its head."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import rayless
from desks import TestDesk, body_of, desk_for, eventually, free_port, make_run
from typer.testing import CliRunner

from lsat_ray.adapters.store import WEIGHTS
from lsat_ray.cli.app import app
from lsat_ray.config import Experiment
from lsat_ray.data.periods import Periods
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.served import CURRENT, Served, commit, read_current
from lsat_ray.serving import hosting
from tests.chaos.processes import TITLES, lose_head, process_of


@pytest.fixture
def run(tiny_experiment: Experiment, tiny_backbone_folder: Path, tmp_path: Path) -> Path:
    """Return the folder of a run on the nano backbone that has published nothing yet."""
    return make_run(tiny_experiment, tiny_backbone_folder, tmp_path)


@pytest.fixture
def desk(run: Path, tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path) -> TestDesk:
    """Return the same models, offline."""
    return desk_for(tiny_experiment, tiny_periods, tiny_backbone_folder, run)


def expected(desk: TestDesk, model: Model, body: dict[str, Any]) -> float:
    """Return the offline P(like)."""
    from lsat_ray.scoring.prefix import Ask, Event

    recommender = desk.desk.recommender
    recommender.prepare([model])
    ask = Ask(tuple(Event(e["title"], e["liked"]) for e in body["history"]), (body["target"],))
    return float(recommender.rank(model, desk.bench.encoder, ask)[0])


def score(port: int, body: dict[str, Any]) -> dict[str, Any]:
    reply = httpx.post(f"http://127.0.0.1:{port}/v1/score", json=body, timeout=30)
    reply.raise_for_status()
    return dict(reply.json())


def ended(process: subprocess.Popen[str]) -> str:
    """End a process that may have ended, and return what it printed."""
    process.terminate()
    try:
        return "".join(filter(None, process.communicate(timeout=90)))
    except subprocess.TimeoutExpired:
        process.kill()
        return "".join(filter(None, process.communicate()))


def test_a_run_is_served_and_followed_without_ray(run: Path, desk: TestDesk, tiny_periods: Periods) -> None:
    first = read_current(run)
    assert first is not None
    (run / CURRENT).unlink()  # a replay that has just begun
    port, body = free_port(), body_of(tiny_periods, 3)
    words = ["serve", str(run), "--follow", "--port", str(port)]
    process = rayless.start(f"from lsat_ray.cli.app import app\napp({words!r})", run.parent.parent)
    try:
        assert process.stdout is not None
        assert "serving" in process.stdout.readline()
        assert "waiting for the first models" in process.stdout.readline()
        commit(run, first)
        answer = eventually("the first models are served", lambda: score(port, body))
        assert (answer["digest"], answer["version"]) == (first.models[0].digest, 1)
        assert answer["probability"] == pytest.approx(expected(desk, first.models[0], body), abs=1e-6)
        second = Model("single", 3, "single", (desk.adapters[3],), (1.0,))
        commit(run, Served(2, (second,)))
        eventually("the next models are served", lambda: score(port, body)["version"] == 2)
        assert score(port, body)["probability"] == pytest.approx(expected(desk, second, body), abs=1e-6)
        damaged = run / "adapters" / desk.adapters[2] / WEIGHTS
        damaged.write_bytes(damaged.read_bytes()[:-1])
        commit(run, Served(3, (Model("single", 4, "single", (desk.adapters[2],), (1.0,)),)))
        lines = iter(process.stdout.readline, "")
        assert any("not changed: " in line for line in lines)
        assert score(port, body)["version"] == 2
    finally:
        ended(process)


def test_what_cannot_be_served_is_one_line(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", str(tmp_path / "nowhere")])
    assert done.exit_code == 2
    assert "no run is there (no config.resolved.yaml); give the folder of a replay" in done.output
    done = CliRunner().invoke(app, ["serve", str(run)])
    assert done.exit_code == 2
    assert "nothing was published (no current.json); give the folder of a replay" in done.output


def test_a_missing_backbone_and_a_taken_port_are_named(
    run: Path, desk: TestDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosting, "PREDECESSOR_S", 0.0)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        done = CliRunner().invoke(app, ["serve", str(run), "--port", str(busy.getsockname()[1])])
    assert done.exit_code == 2 and "serve.port: 127.0.0.1:" in done.output
    (run.parent / "backbones" / "nano-0123").unlink()
    done = CliRunner().invoke(app, ["serve", str(run)])
    assert done.exit_code == 2 and "the run's nano backbone is not there; run the replay again" in done.output


@contextmanager
def on_ray(run: Path, port: int, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command on a cluster that it starts itself."""
    words = ["serve", str(run), "--port", str(port)]
    for override in ("engine.backend=ray", "serve.replicas=2", *overrides):
        words += ["--set", override]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["PYTHONPATH"] = str(rayless.ROOT)
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "lsat_ray", *words]
    process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        yield process
    finally:
        ended(process)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the head under /proc")
def test_the_same_command_takes_up_after_the_head_was_lost(run: Path, desk: TestDesk, tiny_periods: Periods) -> None:
    port, body = free_port(), body_of(tiny_periods, 3)
    current = read_current(run)
    assert current is not None
    with on_ray(run, port) as process:
        before = eventually("it serves", lambda: score(port, body), 180)
        second = Served(2, (Model("single", 3, "single", (desk.adapters[3],), (1.0,)),))
        commit(run, second)
        eventually("it follows", lambda: score(port, body)["version"] == 2, 60)
        lose_head(process.pid)
        said, _ = process.communicate(timeout=360)
        assert process.returncode != 0
    with on_ray(run, port):
        after = eventually("it serves again", lambda: score(port, body), 180)
    assert (before["digest"], after["digest"]) == (current.models[0].digest, second.models[0].digest)
    assert after["probability"] == pytest.approx(expected(desk, second.models[0], body), abs=1e-6)
    assert json.loads((run / CURRENT).read_text())["version"] == 2
    assert "same command again" in said, said[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the head under /proc")
def test_a_head_that_is_lost_while_the_replicas_start_is_told_by_us(run: Path, desk: TestDesk) -> None:
    """Ray ended the process after a minute, in its own words: nobody looked at the head before all replicas served."""
    with on_ray(run, free_port(), "serve.cpus=1000") as process:  # so they never start
        eventually("Serve is there", lambda: process_of(process.pid, TITLES["proxy"]), 180)
        lose_head(process.pid)
        said, _ = process.communicate(timeout=360)
    assert process.returncode == 2, said[-2000:]
    assert "same command again" in said, said[-2000:]
