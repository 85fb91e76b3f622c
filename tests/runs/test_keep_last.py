"""`engine.on_failure: keep-last`: a training that fails for good leaves the last good models served, marked stale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lsat_ray.config import Experiment, LoraSettings, Recipe
from lsat_ray.errors import LsatError
from lsat_ray.runs.check import check
from lsat_ray.runs.finished import finished
from lsat_ray.runs.local import LocalBackend
from lsat_ray.runs.replay import replay
from lsat_ray.training import fit

ROWS = ("full-retraining", "fine-tuning", "lsat-en", "hedge")
SERVED = ("full-retraining", "fine-tuning", "lsat-en(2)")


@pytest.fixture
def config(tiny_experiment: Experiment) -> Experiment:
    """Five periods, so that a row can catch up after a failure in the third."""
    return tiny_experiment.model_copy(
        update={
            "strategies": ROWS,
            "lora": LoraSettings(rank=2, alpha=4, dropout=0.1),
            "recipe": Recipe(lr=5e-3, batch_size=16, epochs=1),
            "search": tiny_experiment.search.model_copy(update={"grid": (0.0, 0.5, 1.0)}),
            "periods": tiny_experiment.periods.model_copy(update={"number": 5}),
            "data": tiny_experiment.data.model_copy(update={"keep_last": 300}),
            "engine": tiny_experiment.engine.model_copy(update={"on_failure": "keep-last"}),
        }
    )


class Trouble:
    """What is wrong with the machine: trainings of a period fail after their first step."""

    def __init__(self, period: int, until: int) -> None:
        self.period, self.until, self.backend, self.met = period, until, LocalBackend, 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        step, arrive = fit._Fit.step, LocalBackend.arrive
        now = 0

        def noted(backend: LocalBackend, period: int) -> None:
            nonlocal now
            now = period
            arrive(backend, period)

        def failing(one: Any, batch: Any) -> None:
            if one.spec.last_period == self.period and now < self.until and one.now.step == 1:
                self.met += 1
                raise RuntimeError("CUDA error: uncorrectable ECC error")
            step(one, batch)

        monkeypatch.setattr(LocalBackend, "arrive", noted)
        monkeypatch.setattr(fit._Fit, "step", failing)


def go(config: Experiment, folder: Path) -> tuple[Path, list[str]]:
    said: list[str] = []
    return replay(config, folder, LocalBackend(config), said.append), said


def records(run: Path, stage: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the records of a stage that count."""
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return {(r["strategy"], r["period"]): r for r in lines if r["stage"] == stage}


def test_the_last_good_models_answer_and_the_same_command_ends_as_if_nothing_had_failed(
    config: Experiment, tmp_path: Path
) -> None:
    whole, _ = go(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        trouble = Trouble(3, until=4)
        trouble.install(patch)
        run, said = go(config, tmp_path / "ill")
    assert trouble.met == 3, "each of three adapters once: a machine that is ill is not asked again in the same period"
    assert sum("keeps its models of period 2: training of" in line and "ECC" in line for line in said) == 3
    stale = records(run, "stale")
    assert {key: r["kept"] for key, r in stale.items()} == {(name, 3): 2 for name in SERVED}
    assert all("RuntimeError: CUDA error: uncorrectable ECC error" in r["reason"] for r in stale.values())
    scores = records(run, "score")
    assert {k for k, r in scores.items() if r.get("stale")} == {(name, 4) for name in SERVED}
    ours, theirs = (pd.read_parquet(f / "metrics.parquet") for f in (run, whole))
    assert list(ours.columns) == list(theirs.columns)
    others = (ours["period"] != 4) & (ours["strategy"] != "hedge")
    pd.testing.assert_frame_equal(ours[others], theirs[others])  # all rows have caught up, the chain too
    assert (ours["auc"] != theirs["auc"])[~others].any()
    page = (run / "report.html").read_text()
    assert "Stale: a training failed for good" in page and "fine-tuning on 4" in page
    assert "Stale: " not in (whole / "report.html").read_text()

    assert finished(check(config), run.parent, "replay") is None, "what failed is still to be done"
    go(config, tmp_path / "ill")
    assert (run / "metrics.parquet").read_bytes() == (whole / "metrics.parquet").read_bytes()
    for stage in ("search", "publish", "score"):
        assert records(run, stage) == records(whole, stage)
    assert (run / "current.json").read_bytes() == (whole / "current.json").read_bytes()
    assert "Stale: " not in (run / "report.html").read_text()
    assert finished(check(config), run.parent, "replay") == run


def test_a_chain_whose_link_never_trains_stays_stale_and_the_others_do_not(
    config: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trouble(3, until=99).install(monkeypatch)
    run, _ = go(config, tmp_path)
    scores = records(run, "score")
    behind = {name: [scores[name, t].get("stale", 0) for t in (3, 4, 5)] for name in SERVED}
    assert behind == {"full-retraining": [0, 1, 0], "fine-tuning": [0, 1, 2], "lsat-en(2)": [0, 1, 0]}
    assert (
        scores["fine-tuning", 4]["digest"] == scores["fine-tuning", 5]["digest"] == scores["fine-tuning", 3]["digest"]
    )
    assert {m["strategy"]: m["period"] for m in json.loads((run / "current.json").read_text())["models"]} == {
        "full-retraining": 4, "fine-tuning": 2, "lsat-en(2)": 4, "frozen": 4,
    }  # fmt: skip


def test_stop_is_the_default_and_ends_with_the_error(
    config: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trouble(3, until=99).install(monkeypatch)
    assert Experiment().engine.on_failure == "stop"
    engine = config.engine.model_copy(update={"on_failure": "stop"})
    with pytest.raises(RuntimeError, match="ECC"):
        go(config.model_copy(update={"engine": engine}), tmp_path)


def test_without_earlier_models_there_is_nothing_to_keep(
    config: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trouble(2, until=99).install(monkeypatch)
    with pytest.raises(LsatError, match=r"ECC error; full-retraining has no earlier models that could stay"):
        go(config, tmp_path)
