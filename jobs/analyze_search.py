"""Open a run's searches with Ray Tune's own API; print and plot what was chosen and how flat the optimum is.

    python jobs/analyze_search.py --run runs/synthetic

`Tuner.restore(path, trainable=trial).get_results()` gives the ordinary `ResultGrid` of each period.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs._common import console, one_clear_error, say
from lsat_ray.errors import LsatError


def open_experiments(run: Path) -> pd.DataFrame:
    """Return one row a trial: experiment, strategy, coefficient, auc."""
    from ray import tune

    from lsat_ray.distributed.search import trial

    frames = []
    for path in sorted((run / "search").glob("seed*-period*")):
        results = tune.Tuner.restore(str(path), trainable=trial).get_results()
        frame = results.get_dataframe()
        columns = {"config/candidate/strategy": "strategy", "config/candidate/coefficient": "coefficient"}
        frames.append(frame.rename(columns=columns)[["strategy", "coefficient", "auc"]].assign(experiment=path.name))
    if not frames:
        raise LsatError(f"{run}: no searches in its search folder; give the folder of a finished replay")
    return pd.concat(frames, ignore_index=True)


def summary(trials: pd.DataFrame, flat: float) -> pd.DataFrame:
    """Return one row a search: what was chosen, and which coefficients come within `flat` of the best AUC."""
    rows = []
    for experiment in trials["experiment"].unique():
        for strategy in trials["strategy"].unique():
            mine = (trials["experiment"] == experiment) & (trials["strategy"] == strategy)
            g = trials.loc[mine].sort_values("coefficient", kind="stable")
            best, near = int(g["auc"].argmax()), g["coefficient"][g["auc"] >= g["auc"].max() - flat]
            rows.append(
                {
                    "experiment": experiment,
                    "strategy": strategy,
                    "chosen": g["coefficient"].iloc[best],
                    "auc": round(g["auc"].iloc[best], 4),
                    "lowest": round(g["auc"].min(), 4),
                    f"within {flat}": f"{near.min():.1f}..{near.max():.1f} ({len(near)} of {len(g)})",
                }
            )
    return pd.DataFrame(rows)


def main(
    run: Annotated[Path, typer.Option("--run", help="Folder of a finished replay.")],
    flat: Annotated[float, typer.Option("--flat", help="AUC within which coefficients count as equal.")] = 0.002,
) -> None:
    """Print and plot what the searches of a run found."""
    with one_clear_error():
        from lsat_ray.distributed.cluster import connect, disconnect

        here = connect()
        try:
            trials = open_experiments(run)
        finally:
            if here:
                disconnect()
        console.print(summary(trials, flat).to_string(index=False), highlight=False, soft_wrap=True)
        from lsat_ray.report import figures
        from lsat_ray.report.folder import RunFolder

        drawn, _ = figures.draw(RunFolder(run), None)
        named = [d for d in drawn if "coefficient" in d.name]
        figures.write(named, run / "figures")
        say("figures: " + ", ".join(str(run / "figures" / f"{d.name}.svg") for d in named))


app = typer.Typer(add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
