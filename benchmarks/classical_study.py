"""Replay a MovieLens log with every classical rival and write the table that the README's claim about them rests on.

    python benchmarks/classical_study.py --log $LSAT_RAY_DATA/ml-latest-small --seeds 0 1 2

Every (row, seed) is a checkpoint under --work, so the same command resumes; two processes may share the work by seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lsat_ray.baselines import classical
from lsat_ray.baselines.naive import PERIOD_RATE, item_rate_by_period, naive_scores
from lsat_ray.baselines.spec import LEARNERS, ClassicalSpec
from lsat_ray.baselines.training import State
from lsat_ray.config import ClassicalRecipe, DataConfig, Experiment, PeriodsConfig
from lsat_ray.data.movielens import read
from lsat_ray.data.periods import Periods, cut
from lsat_ray.evaluation.metrics import auc
from lsat_ray.strategies import RULES, STRATEGIES, Setting

Record = dict[str, Any]


def measure(periods: Periods, tested: int, scores: np.ndarray, recipe: ClassicalRecipe) -> Record:
    """Return AUC of one period over all rows and over those whose item was (not) a target of any training row."""
    rows = periods.rows(tested)
    first = max(0, periods.borders[0] - recipe.warmup_rows)
    warm = np.isin(rows.item, periods.samples.item[first : periods.borders[tested - 1]])
    return {
        "period": tested,
        "auc": auc(rows.label, scores),
        "auc_warm": auc(rows.label[warm], scores[warm]),
        "auc_cold": auc(rows.label[~warm], scores[~warm]),
        "rows": len(rows),
        "cold_rows": int((~warm).sum()),
    }


def plans_of(periods: Periods, seed: int, recipe: ClassicalRecipe) -> dict[str, Callable[[int], ClassicalSpec]]:
    """Return, for every classical row, the function from period to spec."""
    setting = Setting("", periods.fingerprint, Experiment(baselines=recipe), seed)
    rows = {name: STRATEGIES[name](setting) for name in (f"{m}/{r}" for m in LEARNERS for r in RULES)}
    return {name: lambda t, row=row: row.plan(t).adapters[0] for name, row in rows.items()}  # type: ignore[misc, union-attr]


def replay(name: str, periods: Periods, seed: int, recipe: ClassicalRecipe) -> list[Record]:
    """Return one record a tested period D_2..D_T."""
    plan = plans_of(periods, seed, recipe)[name]
    state: State | None = None
    records = []
    for period in range(1, periods.count):
        spec = plan(period)
        started = time.process_time()  # CPU seconds: a shared machine's wall clock says little
        fitted = classical.fit(spec, periods, state if spec.init else None)
        cpu = round(time.process_time() - started, 3)
        state = fitted.state
        scores = classical.score(spec, state, periods, periods.rows(period + 1))
        record = measure(periods, period + 1, scores, recipe)
        cost = {"epoch": fitted.best_epoch, "steps": fitted.steps, "stopped_by": fitted.stopped_by, "fit_cpu_s": cpu}
        records.append({"row": name, "seed": seed, **record, **cost, "fit_wall_s": round(fitted.seconds, 3)})
    return records


def checkpointed(path: Path, name: str, periods: Periods, seed: int, recipe: ClassicalRecipe) -> list[Record]:
    """Return what the checkpoint holds, or replay and publish it by rename."""
    if path.exists():
        return json.loads(path.read_text())
    started = time.perf_counter()
    records = replay(name, periods, seed, recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(records))
    partial.rename(path)
    mean = np.mean([r["auc"] for r in records if 2 * r["period"] > periods.count])
    print(f"{name:28s} seed {seed}: {mean:.4f} in {time.perf_counter() - started:.0f} s", flush=True)
    return records


def naive_records(periods: Periods, recipe: ClassicalRecipe) -> list[Record]:
    """Return the naive rows in the same shape."""
    found = naive_scores(periods.samples, periods.borders[0]) | {PERIOD_RATE: item_rate_by_period(periods)}
    return [
        {"row": n, "seed": -1, **measure(periods, t, s[periods.span(t)], recipe)}
        for n, s in found.items()
        for t in range(2, periods.count + 1)
    ]


def summary(table: pd.DataFrame, first: int) -> str:
    """Return the Markdown table: means over tested periods `first`.. and seeds, best first."""
    late = table[table.period >= first]
    seeds = late.groupby(["row", "seed"])[["auc", "auc_warm", "auc_cold", "fit_cpu_s"]].mean().reset_index()
    grouped = seeds.groupby("row")
    mean, spread, count = grouped.mean(), grouped.auc.std(), grouped.size()
    goal = float(mean.auc["like-share+item-rate"])
    lines = [
        "| row | AUC | sd over seeds | minus naive sum | warm items | cold items | CPU s a fit | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in mean.sort_values("auc", ascending=False).index:
        m = mean.loc[row]
        sd = f"{spread[row]:.4f}" if count[row] > 1 else "-"
        cells = [row, f"{m.auc:.4f}", sd, f"{m.auc - goal:+.4f}", f"{m.auc_warm:.4f}", f"{m.auc_cold:.4f}"]
        cpu = f"{m.fit_cpu_s:.2f}" if m.fit_cpu_s == m.fit_cpu_s else "-"
        lines.append(f"| {' | '.join([*cells, cpu, str(count[row])])} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write `<out>.csv` and `<out>.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, help="MovieLens folder")
    parser.add_argument("--keep-last", type=int, default=40_000)
    parser.add_argument("--positive-above", type=float, default=3.5, help="a rating above this is a like")
    parser.add_argument("--periods", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=None, help="rows to run (default: all)")
    parser.add_argument("--epochs", type=int, default=ClassicalRecipe().epochs)
    parser.add_argument("--patience", type=int, default=ClassicalRecipe().patience)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/classical-study"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/classical_ml_latest_small"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = DataConfig(
        format="movielens", path=str(args.log), keep_last=args.keep_last, positive_above=args.positive_above
    )
    periods = cut(read(args.log, data.positive_above), data, PeriodsConfig(number=args.periods))
    recipe = ClassicalRecipe(epochs=args.epochs, patience=args.patience)
    records = naive_records(periods, recipe)
    for seed in args.seeds:
        plans = plans_of(periods, seed, recipe)
        for name in args.rows or plans:
            digest = plans[name](periods.count - 1).digest[:16]
            path = args.work / f"{name.replace('/', '-')}-{seed}-{digest}.json"
            records += checkpointed(path, name, periods, seed, recipe)
    table = pd.DataFrame(records)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table.round(5).to_csv(args.out.with_suffix(".csv"), index=False)
    first = args.periods // 2 + 1
    head = (
        f"Mean over tested periods {first}..{args.periods}, {args.keep_last // args.periods} samples each; "
        f"side features: as the row's name says; at most {args.epochs} epochs, patience {args.patience}; "
        f"{args.threads} thread(s). Cold: the item was no target in any training row.\n\n"
    )
    missing = [name for name in plans_of(periods, 0, recipe) if name not in set(table.row)]
    tail = f"\nNot run: {', '.join(missing)}.\n" if missing else ""
    args.out.with_suffix(".md").write_text(head + summary(table, first) + "\n" + tail)
    print(summary(table, first))


if __name__ == "__main__":
    main()
