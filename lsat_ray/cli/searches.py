"""What the searches of a finished run found."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lsat_ray.config.running import Select
from lsat_ray.errors import LsatError


def open_experiments(run: Path) -> pd.DataFrame:
    """Return one row per trial: experiment, strategy, coefficient, auc, log_loss, share.

    Ray Tune's experiments are opened with its own API; a run without them (the local backend) has the same figures in
    `search/coefficients.parquet`, from which the shares in the weights that were chosen are read in any case.

    Raises:
        LsatError: when the folder holds no search.
    """
    table = run / "search" / "coefficients.parquet"
    if not table.is_file():
        raise LsatError(f"{run}: no searches in its search folder; give the folder of a finished replay")
    frame = pd.read_parquet(table)
    names = [f"seed{s}-period{p:02d}" for s, p in zip(frame["seed"], frame["period"], strict=True)]
    found = frame.assign(experiment=names).drop(columns=["seed", "period"])
    if any((run / "search").glob("seed*-period*")):
        from lsat_ray.distributed.experiments import trials

        key = ["experiment", "strategy", "coefficient"]
        return trials(run / "search").merge(found[[*key, "share"]], on=key)
    return found


def summary(trials: pd.DataFrame, flat: float, select: Select) -> pd.DataFrame:
    """Return one row per search: what was chosen, and which coefficients come within `flat` of the best."""
    column = "auc" if select == "auc" else "log_loss"
    rows = []
    for (experiment, strategy), group in trials.groupby(["experiment", "strategy"], sort=False):
        g = group.sort_values("coefficient", kind="stable")
        behind = (g[column].max() - g[column]) if select == "auc" else (g[column] - g[column].min())
        near = g["coefficient"][behind <= flat]
        rows.append(
            {
                "experiment": experiment,
                "strategy": strategy,
                "chosen": round((g["share"] * g["coefficient"]).sum(), 4),
                f"best {column}": round(g[column][behind.idxmin()], 4),
                "behind at most": round(behind.max(), 4),
                f"within {flat}": f"{near.min():.1f}..{near.max():.1f} ({len(near)} of {len(g)})",
            }
        )
    return pd.DataFrame(rows)


def write_figures(run: Path) -> list[Path]:
    """Draw the chosen coefficients into the run's `figures` folder and return the files."""
    from lsat_ray.report import figures
    from lsat_ray.report.reader import RunReader

    drawn, _ = figures.draw(RunReader(run), None)
    named = [d for d in drawn if "coefficient" in d.name]
    figures.write(named, run / "figures")
    return [run / "figures" / f"{d.name}.svg" for d in named]
