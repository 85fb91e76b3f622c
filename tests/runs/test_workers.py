"""The number of workers changes the order of sums, and no row by what a table would show."""

from pathlib import Path

import pandas as pd
import pytest

from lsat_ray import config
from lsat_ray.runs.local import LocalBackend
from lsat_ray.runs.study import study

DEFAULT = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "synthetic.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_worker_and_two_give_every_row_of_the_default_config_alike(tmp_path: Path) -> None:
    """The step that is kept and the merge weights hung on rounding: rows differed by up to .010."""
    mean = {}
    for workers in (1, 2):
        sets = ("engine.backend=local", f"engine.workers={workers}", "study.every_period=false", "study.figures=false")
        found = config.load(DEFAULT, sets, f"workers{workers}")
        run = study(found, tmp_path, LocalBackend(found), lambda _: None)
        mean[workers] = pd.read_parquet(run / "metrics.parquet").groupby("strategy")["auc"].mean()
    assert {"lsat-en(10)", "lsat-en(full)", "lsat-ta(10)", "hedge"} <= set(mean[1].index)
    assert (mean[1] - mean[2]).abs().max() < 0.002
