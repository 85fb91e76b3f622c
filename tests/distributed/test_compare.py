"""The study as a user runs it: every distinct adapter once, its table against a committed one, and a resume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lsat_ray.report.study import TABLE2

ROOT = Path(__file__).resolve().parent.parent.parent
COMMITTED = ROOT / "benchmarks" / "results" / "study_synthetic" / "table2.csv"


def study(folder: Path) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, "jobs/compare_strategies.py", "--config", "jobs/configs/study_synthetic.yaml"]
    done = subprocess.run(
        [*command, "--runs-dir", str(folder)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_the_small_study_gives_the_committed_table_and_resumes_without_training(tmp_path: Path) -> None:
    assert "21 distinct models: 0 reused, 21 to train" in study(tmp_path)
    run = tmp_path / "study_synthetic"
    ours, before = pd.read_csv(run / "table2.csv"), pd.read_csv(COMMITTED)
    assert list(ours.columns) == TABLE2
    assert set(ours["strategy"]) == set(before["strategy"])
    both = ours.merge(before, on="strategy", suffixes=("", "_before"))
    assert (both["trainings"].fillna(0) == both["trainings_before"].fillna(0)).all()
    fixed = both["strategy"].isin(["oracle", "like-share", "item-rate", "like-share+item-rate"])
    np.testing.assert_allclose(both["mean_auc"][fixed], both["mean_auc_before"][fixed], atol=1e-6)
    # Trained rows: another processor's rounding moves a tiny model's AUC, but not by more than this.
    np.testing.assert_allclose(both["mean_auc"], both["mean_auc_before"], atol=0.03)
    trainings = pd.read_csv(run / "trainings.csv")
    assert len(trainings) == trainings["digest"].nunique() == 21
    for name in ("fig2", "fig3", "fig4"):
        assert len(pd.read_csv(run / "study" / f"{name}.csv")) > 0
    metrics = (run / "metrics.parquet").read_bytes()
    assert "nothing left to do" in study(tmp_path)
    assert (run / "metrics.parquet").read_bytes() == metrics
