"""Map where two adapters pay: LSAT's rows and the oracles minus full retraining, on a stream with known truth.

    python benchmarks/when_two_adapters_pay.py --config jobs/configs/map_synthetic.yaml --out benchmarks/results

runs a study per drift x half-life (in samples) x rows per period x backbone, five seeds each, and writes
`when_two_adapters_pay/map.csv`, its figure, versions and the newest cell's resolved config after every cell. The same
command resumes; cells of earlier commands stay in the file unless they are measured again; `--draw` only draws.
"""

from __future__ import annotations

import argparse
import itertools
import json
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
from lsat_ray.runs.folder import versions

MAP = ["strategy", "drift", "half_life", "rows", "delta", "low", "high", "seeds", "backbones"]
"""Columns of `map.csv`."""


def draw(table: pd.DataFrame) -> Drawn:
    """Draw the map: a panel per half-life and rows per period, the difference over the drift's strength.

    Args:
        table: columns `MAP`.
    """
    shown = [s for s in dict.fromkeys(table["strategy"]) if s.startswith("lsat-") or s in ("short-term", "fine-tuning")]
    looks = {s: look(s, i) for i, s in enumerate(shown)}
    panels = sorted({(float(h), int(r)) for h, r in zip(table["half_life"], table["rows"], strict=True)})
    with drawing():
        figure = Figure(figsize=(5.2 * len(panels), 3.6))
        every = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        figure.subplots_adjust(left=0.08, right=0.86, top=0.9, bottom=0.16, wspace=0.4)
        ends_of: list[dict[str, tuple[float, float]]] = []
        for axes, (half_life, rows) in zip(every, panels, strict=True):
            part = table[(table["half_life"] == half_life) & (table["rows"] == rows)]
            ends = {}
            for name in shown:
                mine = part[part["strategy"] == name].sort_values("drift")
                if mine.empty:  # a row is named by its m, which follows from the rows per period
                    continue
                x, y, low, high = (mine[c].to_numpy(np.float64) for c in ("drift", "delta", "low", "high"))
                axes.errorbar(x, y, yerr=[y - low, high - y], capsize=2, elinewidth=0.8, **looks[name])
                ends[name] = (float(x[-1]), float(y[-1]))
            ends_of.append(ends)
            axes.axhline(0.0, color=GREY, lw=0.8)
            axes.set_title(f"half-life {half_life:g} samples, {rows} rows per period")
            axes.set_xlabel("strength of the drift")
        every[0].set_ylabel("mean AUC minus full retraining")
        for axes, ends in zip(every, ends_of, strict=True):
            axes.set_ylim(*axes.get_ylim())
            label_ends(axes, ends, looks)
    caption = "Differences with 95 % intervals; seeds, backbones and users are resampled."
    return Drawn("map", "Where two adapters pay", caption, figure, table)


def differences(found: Mapping[str, Mapping[str, Runs]], reference: str = "full-retraining") -> pd.DataFrame:
    """Return the difference of every row with a model and of the oracles, over seeds and backbones together.

    Args:
        found: by backbone, the scores of a study by strategy.
        reference: the strategy that the others are compared with.

    Returns:
        columns strategy, delta, low, high (95 %, backbones, seeds and users resampled), seeds, backbones.
    """
    together: dict[str, dict[Key, Scored]] = {}
    for backbone, scores in found.items():
        for name, runs in scores.items():
            if runs and (has_model(name) or name.startswith("oracle")):
                together.setdefault(name, {}).update({k._replace(backbone=backbone): v for k, v in runs.items()})
    compared = compare_all(together, reference)
    rows = [
        (name, c.difference, c.low, c.high, len({k.seed for k in together[name]}), len(found))
        for name, c in compared.items()
    ]
    return pd.DataFrame(rows, columns=["strategy", "delta", "low", "high", "seeds", "backbones"])


def merged(path: Path, measured: pd.DataFrame) -> pd.DataFrame:
    """Return the map in a file with the measured cells in the place of its own, sorted by rows, half-life and drift.

    Args:
        path: `map.csv` of earlier commands; it need not exist.
        measured: columns `MAP`.
    """
    cell = ["rows", "half_life", "drift"]
    earlier = pd.read_csv(path) if path.is_file() else measured.iloc[:0]
    again = set(measured[cell].itertuples(index=False, name=None))
    kept = [key not in again for key in earlier[cell].itertuples(index=False, name=None)]
    return pd.concat([earlier[kept], measured], ignore_index=True)[MAP].sort_values(cell, kind="stable")


def cells(options: argparse.Namespace) -> Iterator[tuple[dict[str, float], dict[str, Experiment]]]:
    """Yield every cell of the map: its knobs, and its study by backbone. The number of samples is the same in all."""
    whole = load(options.config).data.keep_last
    assert whole is not None, "the map's config says how long its stream is (data.keep_last)"
    for half_life, rows, drift in itertools.product(options.half_life, options.rows, options.drift):
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


def main() -> None:
    """Run what is missing of the map's studies, one at a time; write and draw the map after every cell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draw", action="store_true", help="draw the map that is there")
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/map_synthetic.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/map"))
    parser.add_argument("--drift", type=float, nargs="+", default=[0.0, 1.2, 2.4])
    parser.add_argument("--half-life", type=float, nargs="+", default=[400, 3200])
    parser.add_argument("--rows", type=int, nargs="+", default=[400])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--backbones", type=int, default=3)
    options = parser.parse_args()
    folder = options.out / "when_two_adapters_pay"
    for knobs, studies in [] if options.draw else cells(options):
        found = {b: RunReader(study(config, options.runs_dir)).scores for b, config in studies.items()}
        table = merged(folder / "map.csv", differences(found).assign(**knobs)[MAP])
        write_atomic(folder / "map.csv", table.to_csv(index=False, float_format="%.6g"))
        write_atomic(folder / "config.resolved.yaml", next(iter(studies.values())).to_yaml())  # the newest cell's
        write_atomic(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")
    save(draw(pd.read_csv(folder / "map.csv")), folder)


if __name__ == "__main__":
    main()
