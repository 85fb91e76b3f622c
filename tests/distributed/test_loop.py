"""The whole loop as a user starts it: a job in its own process, killed and started again."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = """
name: tiny
data: {format: synthetic, keep_last: 480, synthetic: {users: 30, items: 60, warmup: 200, half_life: 192}}
periods: {number: 5, validation: 0.2}
replay: {long_periods: 2}
backbone: {nano: {hidden: 32, vocabulary: 420, epochs: 1}}
recipe: {lr: 0.005, epochs: 1, batch_size: 32}
engine: {workers: 1}
"""
ROWS = {
    *("full-retraining", "fine-tuning", "short-term", "long-term", "lsat-en(2)", "lsat-en(full)", "lsat-ta(2)"),
    *("hedge", "frozen", "like-share", "item-rate", "like-share+item-rate", "item-rate@period"),
    *("oracle", "oracle-long", "oracle-short", "oracle-mixture"),
}
COLUMNS = [
    "strategy",
    "period",
    "seed",
    "auc",
    "auc_low",
    "auc_high",
    "log_loss",
    "accuracy",
    "rows",
    "positives",
    "gauc",
    "ece",
]


def start(folder: Path, port: int) -> subprocess.Popen[str]:
    config = folder / "tiny.yaml"
    config.write_text(CONFIG)
    command = [sys.executable, "jobs/stream_replay.py", "--config", str(config), "--runs-dir", str(folder)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    log = (folder / "log").open("a")
    return subprocess.Popen(
        [*command, "--set", f"serve.port={port}"],
        cwd=ROOT, env=env, stdout=log, stderr=log, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], folder: Path) -> str:
    code = process.wait(timeout=720)
    log = (folder / "log").read_text()
    assert code == 0, log[-3000:]
    return log


def adapters(run: Path) -> dict[str, str]:
    files = sorted((run / "adapters").glob("*/adapter_model.safetensors"))
    return {f.parent.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the tiny replay once, in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    log = finish(start(folder, 18521), folder)
    assert "FRESH" in log
    assert "core_worker" not in log, "Ray's own lines belong in its logs"
    return folder / "tiny"


@pytest.mark.ray
def test_the_replay_measures_every_row_on_every_tested_period(undisturbed: Path) -> None:
    metrics = pd.read_parquet(undisturbed / "metrics.parquet")
    assert list(metrics.columns) == COLUMNS
    assert set(metrics["strategy"]) == ROWS
    for _, part in metrics.groupby("strategy"):
        assert sorted(part["period"]) == [3, 4, 5]
    assert metrics["auc"].between(0, 1).all()
    oracle = metrics[metrics["strategy"] == "oracle"]["auc"].mean()
    assert oracle == metrics.groupby("strategy")["auc"].mean().max()


@pytest.mark.ray
def test_the_run_leaves_what_the_design_promises(undisturbed: Path) -> None:
    for name in ("config.resolved.yaml", "versions.json", "ledger.jsonl", "timings.parquet", "report.html"):
        assert (undisturbed / name).is_file(), name
    timings = pd.read_parquet(undisturbed / "timings.parquet")
    assert {"start-up", "backbone", "train", "score", "search", "serve", "publish"} <= set(timings["stage"])
    coefficients = pd.read_parquet(undisturbed / "search" / "coefficients.parquet")
    assert coefficients.groupby(["strategy", "period"])["share"].sum().round(9).eq(1).all()
    scores = pd.read_parquet(undisturbed / "scores" / "lsat-en(2)" / "seed0" / "period03.parquet")
    assert list(scores.columns) == ["row", "user", "item", "label", "score"]


@pytest.mark.ray
def test_the_ensemble_is_the_weighted_mean_of_the_single_strategies(undisturbed: Path) -> None:
    """LSAT-EN's scores, through the endpoint, are those of its rows under the weights that the search chose."""
    ledger = [json.loads(line) for line in (undisturbed / "ledger.jsonl").read_text().splitlines()]
    chosen = {r["period"]: r["weights"] for r in ledger if r["stage"] == "search" and r["strategy"] == "lsat-en(2)"}
    assert sorted(chosen) == [2, 3, 4]
    for period, (alpha, rest) in chosen.items():
        file = f"seed0/period{period + 1:02d}.parquet"
        names = ("lsat-en(2)", "long-term", "short-term")
        ensemble, long, short = (pd.read_parquet(undisturbed / "scores" / n / file)["score"] for n in names)
        np.testing.assert_allclose(ensemble, alpha * long + rest * short, atol=1e-6)


@pytest.mark.ray
def test_the_search_opens_with_tunes_own_api(undisturbed: Path, ray_cluster: None) -> None:
    from ray import tune

    from lsat_ray.distributed.search import trial

    grid = tune.Tuner.restore(str(undisturbed / "search" / "seed0-period02"), trainable=trial).get_results()
    assert len(grid) == 33
    best = grid.get_best_result().metrics  # in the order of `search.select`, without being told
    assert best["log_loss"] == grid.get_dataframe()["log_loss"].min()


@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_killed_and_started_again_it_ends_with_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL the job while it trains on a period that it has scored; no metric and no adapter may differ."""
    run = tmp_path / "tiny"
    process = start(tmp_path, 18522)
    deadline = time.monotonic() + 200
    while len(adapters(run)) < 5:  # four up to period 2, so the fifth is one of the three of period 3
        assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "log").read_text()[-2000:]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    log = finish(start(tmp_path, 18524), tmp_path)
    assert "RESUMED" in log
    assert (run / "metrics.parquet").read_bytes() == (undisturbed / "metrics.parquet").read_bytes()
    assert (run / "ledger.jsonl").read_text() == (undisturbed / "ledger.jsonl").read_text()
    assert adapters(run) == adapters(undisturbed)
