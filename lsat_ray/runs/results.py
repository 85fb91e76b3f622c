"""What every finished run leaves: metrics, coefficients, timings and the report, from ledger and scores."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from lsat_ray import report
from lsat_ray.evaluation.metrics import FIELDS
from lsat_ray.files import write_atomic
from lsat_ray.runs.context import Run

METRICS = ["strategy", "period", "seed", *FIELDS]
"""Columns of `metrics.parquet`."""


def write(run: Run, more: Callable[[Run, pd.DataFrame], None] | None = None) -> None:
    """Write metrics, coefficients, timings and report; `more` writes a study's own tables from the metrics."""
    path = run.folder.path
    with run.timings.span("report"):
        write_atomic(path / "metrics.parquet", metrics(run))
        if tables := sorted((run.folder.search / "coefficients").glob("*.parquet")):
            merged = pd.concat([pd.read_parquet(p) for p in tables], ignore_index=True)
            write_atomic(run.folder.search / "coefficients.parquet", merged)
        write_atomic(path / "timings.parquet", run.timings.frame())
        if more:
            more(run, metrics(run))
        report.write(path, run.config.study.noise, run.config.study.figures, before_page=run.backend.finish)
    write_atomic(path / "timings.parquet", run.timings.frame())


def metrics(run: Run) -> pd.DataFrame:
    """Return one row per seed, tested period and strategy."""
    frame = pd.DataFrame(run.ledger.records("score"))[METRICS]
    return frame.sort_values(["seed", "period", "strategy"], kind="stable").reset_index(drop=True)
