"""The discrete-event model on graphs whose answer is known, and on a measured run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import scale_model
from benchmarks.scale_model import Job, Measured, curve, makespan, measured
from lsat_ray.config import Experiment, LoraSettings, Recipe
from lsat_ray.errors import LsatError
from lsat_ray.runs.local import LocalBackend
from lsat_ray.runs.study import study

CHAIN = [Job("a", 1.0, (), 1), Job("b", 2.0, ("a",), 2), Job("c", 3.0, ("b",), 3)]
FREE = [Job(f"f{i}", 2.0, (), 3) for i in range(4)]


def test_one_session_does_everything_and_many_wait_for_the_chain() -> None:
    jobs = CHAIN + FREE
    assert [makespan(jobs, n) for n in (1, 2, 3, 99)] == [14.0, 8.0, 6.0, 6.0]
    assert makespan(jobs, 1, gap=0.5) == 17.5
    assert makespan([], 4) == 0.0
    assert makespan([Job("x", 1.0, ("elsewhere",), 1)], 1) == 1.0, "a parent of another run is there already"
    assert makespan([FREE[0], *CHAIN], 1) == 8.0, "handed out in order: the first that can run"


def test_sessions_share_the_cores_of_their_machine() -> None:
    """On two cores four sessions were predicted to take half of what two take."""
    assert [makespan(FREE, n, cores=2) for n in (1, 2, 4)] == [8.0, 4.0, 4.0]
    assert makespan(FREE, 4) == 2.0
    assert makespan([Job("x", 1.0), Job("y", 3.0)], 2, cores=1) == 4.0, "y is alone once x is done"
    run = Measured(tuple(FREE), serial=0.0, gap=0.0, wall=8.0, sessions=1, cores=2)
    rows = curve(run, "back-fill", (1, 2, 4), run.cores)
    assert [r["speed_up"] for r in rows] == [1.0, 2.0, 2.0]
    assert rows[2]["limit"] == "cores"


def test_every_session_starts_and_starts_share_the_cores_too() -> None:
    """Four sessions on a busy machine were predicted to be there as soon as one."""
    run = Measured(tuple(FREE), serial=1.0, gap=0.0, wall=14.0, sessions=1, cores=1, starting=5.0)
    assert [r["seconds"] for r in curve(run, "back-fill", (1, 2, 4), cores=1)] == [14.0, 19.0, 29.0]
    assert [r["seconds"] for r in curve(run, "back-fill", (1, 2, 4))] == [14.0, 10.0, 8.0], "cores of their own"


def test_a_barrier_costs_and_what_limits_is_named() -> None:
    run = Measured((*CHAIN, *FREE, Job("s", 4.0)), serial=3.0, gap=0.0, wall=21.0, sessions=1)
    filled, replayed, chains = (curve(run, s, (1, 2, 64)) for s in ("back-fill", "replay", "chains"))
    assert [r["seconds"] for r in filled] == [21.0, 15.0, 13.0]
    assert [r["seconds"] for r in replayed] == [21.0, 3 + 4 + 1 + 2 + 6, 3 + 4 + 1 + 2 + 3]
    assert [r["speed_up"] for r in chains] == [1.0, 1.0, 1.0]
    assert (filled[0]["limit"], filled[2]["limit"], chains[2]["limit"]) == ("work", "chain", "chain")


def test_it_is_fed_by_a_measured_run(
    tiny_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_experiment.model_copy(
        update={
            "strategies": ("full-retraining", "fine-tuning", "mf/full-retraining"),
            "lora": LoraSettings(rank=2, alpha=4),
            "recipe": Recipe(batch_size=32, epochs=1),
        }
    )
    folder = study(config, tmp_path, LocalBackend(config), lambda _: None)
    run = measured(folder)
    models = [j for j in run.jobs if j.period]
    assert len(models) == len(list((folder / "adapters").glob("*/manifest.json")))
    assert {len(j.parents) for j in models} == {0, 1}
    assert run.sessions == 1 and 0 < sum(j.seconds for j in run.jobs) < run.wall
    (alone, *_, most) = curve(run, "back-fill")
    assert alone["seconds"] == pytest.approx(run.wall, rel=0.05), "one session: the wall clock that was measured"
    assert 1 < most["speed_up"] < 256

    out = tmp_path / "model.json"
    options = ["--run", str(folder), "--json", str(out), "--figure", str(tmp_path / "model.svg")]
    monkeypatch.setattr(sys, "argv", ["scale_model.py", *options])
    scale_model.main()
    tree = json.loads(out.read_text())
    assert tree["curves"].keys() == {"back-fill", "replay", "chains"}
    assert [r["sessions"] for r in tree["curves"]["replay"]] == list(scale_model.WORKERS)
    assert tree["check"][0]["sessions"] == 1 and abs(tree["check"][0]["error"]) < 0.05
    assert "<svg" in (tmp_path / "model.svg").read_text()
    assert "back-fill" in capsys.readouterr().out
    with pytest.raises(LsatError, match="not a finished run"):
        measured(tmp_path / "nothing")
