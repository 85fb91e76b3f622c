"""Tables, figures and the HTML report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from lsat_ray.errors import LsatError
from lsat_ray.files import write_atomic

TABLE = "mean_auc.csv"
"""A run's table of mean AUC, as `tables.mean_auc` returns it; its intervals take seconds to compute."""


def load() -> None:
    """Import what a report needs: matplotlib and scipy's statistics take two seconds."""
    from lsat_ray.report import figures, html, study, tables  # noqa: F401


def write(
    run_dir: Path, noise: float | None = None, draw: bool = True, before_page: Callable[[], object] | None = None
) -> Path:
    """Build a run's report: `mean_auc.csv`, `figures/*.svg|png|csv` and, last, `report.html`.

    A part whose file is missing is left out, and a line of the report says so.

    Args:
        run_dir: the run folder.
        noise: noise floor, printed under the tables (`tables.noise_line`); None where it was not measured.
        draw: draw the figures; without them the report has its tables.
        before_page: is called when only `report.html` is missing: a run that has one counts as finished.

    Returns:
        the path of `report.html`.

    Raises:
        LsatError: when the folder does not exist, or one of its files is not what the contract says.
    """
    # Imported here: matplotlib and scikit-learn take a second that a worker need not spend.
    from lsat_ray.report import figures, html, study, tables
    from lsat_ray.report.reader import RunReader

    if not run_dir.is_dir():
        raise LsatError(f"{run_dir}: no such run folder; give the folder of a run, as in runs/default")
    run = RunReader(run_dir)
    table = None
    if run.metrics is not None and not run.metrics.empty:
        table = tables.mean_auc(run.metrics, run.scores, noise=noise)
        write_atomic(run_dir / TABLE, table.to_csv(index=False))
    drawn, missing = figures.draw(run, table, noise) if draw else ([], [])
    extra = study.sections(run, noise)
    if not draw:
        extra = [dataclasses.replace(s, drawn=None) for s in extra]
    figures.write([*drawn, *(s.drawn for s in extra if s.drawn is not None)], run_dir / "figures")
    page = html.page(run, table, drawn, missing, extra, noise)
    if before_page:
        before_page()
    return write_atomic(run_dir / "report.html", page)
