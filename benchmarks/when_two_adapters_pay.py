"""Draw, from finished sweeps of the synthetic stream, when two adapters pay: LSAT-EN beside its rivals and the oracle.

    python benchmarks/when_two_adapters_pay.py --out benchmarks/results

Reads `drift/sweep.csv` (strength of the drift) and `half_life/sweep.csv` (in periods), which `jobs/sweep.py` wrote with
`--against full-retraining --against fine-tuning`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lsat_ray.report.style import GREY, Drawn, drawing, label_ends, look, save

SETTINGS = {"drift": "strength of the drift", "half_life": "half-life of the drift, periods"}
SHOWN = ("oracle", "full-retraining", "fine-tuning", "lsat-en(10)", "lsat-en(full)")


def draw(tables: Mapping[str, pd.DataFrame]) -> Drawn:
    """Draw mean AUC, and LSAT-EN's difference from full retraining and fine-tuning, a column a setting.

    Args:
        tables: `sweep.csv` by what was varied.
    """
    looks = {s: look(s, i) for i, s in enumerate(SHOWN)}
    with drawing():
        figure = Figure(figsize=(5.2 * len(tables), 8.4))
        grid = figure.subplots(3, len(tables), squeeze=False, sharex="col")
        figure.subplots_adjust(left=0.08, right=0.86, top=0.96, bottom=0.07, wspace=0.4, hspace=0.2)
        for column, (setting, table) in zip(grid.T, tables.items(), strict=True):
            places = {v: float(i) for i, v in enumerate(sorted(table["value"].unique()))}
            for axes, (title, reference) in zip(column, _panels(), strict=True):
                part = table[table["against"] == (reference or table["against"].iloc[0])]
                ends = {}
                for name in SHOWN:
                    mine = part[(part["strategy"] == name)].sort_values("value")
                    if reference and not name.startswith("lsat-en"):
                        continue
                    x = mine["value"].map(places).to_numpy(np.float64)
                    y = mine["delta" if reference else "mean_auc"].to_numpy(np.float64)
                    if reference:
                        low, high = (mine[c].to_numpy(np.float64) for c in ("ci_low", "ci_high"))
                        axes.errorbar(x, y, yerr=[y - low, high - y], capsize=2, elinewidth=0.8, **looks[name])
                    else:
                        axes.plot(x, y, **looks[name])
                    ends[name] = (float(x[-1]), float(y[-1]))
                if reference:
                    axes.axhline(0.0, color=GREY, lw=0.8)
                axes.set_title(title)
                axes.set_xticks(list(places.values()), [f"{v:g}" for v in places])
                axes.set_ylim(*axes.get_ylim())
                label_ends(axes, ends, looks)
            column[-1].set_xlabel(setting)
    caption = "Mean AUC over the tested periods; paired differences with 95 % bootstrap intervals over users."
    data = pd.concat([t.assign(setting=s) for s, t in tables.items()], ignore_index=True)
    return Drawn("when_two_adapters_pay", "When two adapters pay", caption, figure, data[data["strategy"].isin(SHOWN)])


def _panels() -> tuple[tuple[str, str], ...]:
    return (
        ("mean AUC", ""),
        ("LSAT-EN minus full retraining", "full-retraining"),
        ("LSAT-EN minus fine-tuning", "fine-tuning"),
    )


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    tables = {label: pd.read_csv(options.results / name / "sweep.csv") for name, label in SETTINGS.items()}
    save(draw(tables), options.out)


if __name__ == "__main__":
    main()
