"""Draw, from finished sweeps of the synthetic stream, when two adapters pay: LSAT-EN beside its rivals and the oracle.

    python benchmarks/when_two_adapters_pay.py --out benchmarks/results

Reads `drift/sweep.csv` (strength of the drift) and `half_life/sweep.csv` (in periods), which `jobs/sweep.py` wrote with
`--against full-retraining --against fine-tuning`.

    python benchmarks/when_two_adapters_pay.py --map --out benchmarks/results

runs the studies of the map itself, drift x half-life (in samples) x rows per period, five seeds and three backbones,
and writes `when_two_adapters_pay/map.csv`; the same command resumes.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lsat_ray.cli.front import study
from lsat_ray.config import Experiment, load
from lsat_ray.evaluation.significance import Key, Runs, Scored, compare_all
from lsat_ray.files import write_atomic
from lsat_ray.report.reader import RunReader
from lsat_ray.report.style import GREY, Drawn, drawing, label_ends, look, save
from lsat_ray.report.tables import has_model

SETTINGS = {"drift": "strength of the drift", "half_life": "half-life of the drift, periods"}
SHOWN = ("oracle", "full-retraining", "fine-tuning", "lsat-en(10)", "lsat-en(full)")


MAP = ["strategy", "drift", "half_life", "rows", "delta", "low", "high", "seeds", "backbones"]
"""Columns of `map.csv`."""


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


def differences(found: Mapping[str, Mapping[str, Runs]], reference: str = "full-retraining") -> pd.DataFrame:
    """Return the difference of every row with a model from the reference, over seeds and backbones together.

    Args:
        found: by backbone, the scores of a study by strategy.
        reference: the strategy that the others are compared with.

    Returns:
        columns strategy, delta, low, high (95 %, backbones, seeds and users resampled), seeds, backbones.
    """
    together: dict[str, dict[Key, Scored]] = {}
    for backbone, scores in found.items():
        for name, runs in scores.items():
            if has_model(name):
                together.setdefault(name, {}).update({k._replace(backbone=backbone): v for k, v in runs.items()})
    compared = compare_all(together, reference)
    rows = [
        (name, c.difference, c.low, c.high, len({k.seed for k in together[name]}), len(found))
        for name, c in compared.items()
    ]
    return pd.DataFrame(rows, columns=["strategy", "delta", "low", "high", "seeds", "backbones"])


def cells(options: argparse.Namespace) -> Iterator[tuple[dict[str, float], dict[str, Experiment]]]:
    """Yield every cell of the map: its knobs, and its study by backbone. The number of samples is the same in all."""
    whole = load(options.config).data.keep_last
    assert whole is not None, "the map's config says how long its stream is (data.keep_last)"
    for drift, half_life, rows in itertools.product(options.drift, options.half_life, options.rows):
        number = whole // rows
        fixed = (
            f"data.synthetic.drift={drift:g}",
            f"data.synthetic.half_life={half_life:g}",
            f"periods.number={number}",
            f"replay.long_periods={number // 2}",
            f"seeds={list(range(options.seeds))}",
            *options.set,
        )
        name = f"map-{drift:g}-{half_life:g}-{rows}"
        studies = {
            f"nano{b}": load(options.config, (*fixed, f"backbone.nano.seed={b}"), f"{name}-nano{b}")
            for b in range(options.backbones)
        }
        yield {"drift": drift, "half_life": half_life, "rows": rows}, studies


def draw_map(options: argparse.Namespace) -> None:
    """Run what is missing of the map's studies, one at a time, and write `map.csv` after every cell."""
    blocks = []
    for knobs, studies in cells(options):
        found = {b: RunReader(study(config, options.runs_dir)).scores for b, config in studies.items()}
        blocks.append(differences(found).assign(**knobs))
        file = options.out / "when_two_adapters_pay" / "map.csv"
        write_atomic(file, pd.concat(blocks, ignore_index=True)[MAP].to_csv(index=False, float_format="%.6g"))


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--map", action="store_true", help="run the studies of the map; the same command resumes")
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/sweep_synthetic.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/map"))
    parser.add_argument("--drift", type=float, nargs="+", default=[0.0, 0.6, 1.2, 2.4])
    parser.add_argument("--half-life", type=float, nargs="+", default=[400, 1600, 6400])
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 400, 800])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--backbones", type=int, default=3)
    options = parser.parse_args()
    if options.map:
        draw_map(options)
        return
    tables = {label: pd.read_csv(options.results / name / "sweep.csv") for name, label in SETTINGS.items()}
    save(draw(tables), options.out)


if __name__ == "__main__":
    main()
