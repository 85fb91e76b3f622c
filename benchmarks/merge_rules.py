"""Measure, per rule by which merge weights are chosen on V_t, how far a table moves when nothing but rounding differs.

    OMP_NUM_THREADS=1 python benchmarks/merge_rules.py --config jobs/configs/synthetic.yaml \\
        --json benchmarks/results/merge_rules.json

As `noise_floor.py` does for the step that is kept: ten runs that differ in a seeded 1e-6 added to the lora_A that a
training starts from. Every rule chooses among the same adapters of a run, which are trained once. `spread` of a row is
the largest minus the smallest mean AUC over the runs; `moved` is the share of searches that do not choose the same
weights in all runs. The same command resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import machine, matmul_peak
from benchmarks.noise_floor import perturbed, summary
from lsat_ray.config import load
from lsat_ray.files import write_atomic
from lsat_ray.report.tables import has_model
from lsat_ray.runs.folder import versions
from lsat_ray.runs.local import LocalBackend
from lsat_ray.runs.study import study

ROWS = "strategies=[full-retraining, short-term, long-term, lsat-en, lsat-en-full, lsat-ta, hedge]"
POOLED = "periods.validation_pool=3"
RULES = {
    "AUC": ("search.select=auc",),
    "log-loss": ("search.select=log-loss",),
    "AUC, three periods pooled": ("search.select=auc", POOLED),
    "log-loss, three periods pooled": ("search.select=log-loss", POOLED),
}
"""What is set, by the name of the rule."""


def measure(options: argparse.Namespace, rule: str, run: int) -> tuple[pd.Series, pd.Series]:
    """Return the mean AUC of every row that has a model, and the weight that each search chose, of one run."""
    first = f"run{run}-rule0"
    name = f"run{run}-rule{list(RULES).index(rule)}"
    sets = ("study.every_period=false", ROWS, *RULES[rule], *options.set)
    config = load(options.config, sets, name)
    folder = options.runs_dir / name
    if not (folder / "metrics.parquet").is_file():
        for part in ("adapters", "passes"):
            if name != first and not (folder / part).exists():
                shutil.copytree(options.runs_dir / first / part, folder / part, copy_function=os.link)
        with perturbed(run, options.size):
            study(config, options.runs_dir, LocalBackend(config), lambda _: None)
    frame = pd.read_parquet(folder / "metrics.parquet")
    tried = pd.read_parquet(folder / "search" / "coefficients.parquet").query("chosen")
    auc = frame[frame["strategy"].map(has_model)].groupby("strategy")["auc"].mean()
    return auc, tried.set_index(["seed", "period", "strategy"])["coefficient"]


def main() -> None:
    """Measure what is missing, and write the JSON after every run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/merge_rules"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--size", type=float, default=1e-6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    host = machine(torch.device("cpu"), 1, matmul_peak(torch.device("cpu")))
    found: dict[str, list[pd.Series]] = {rule: [] for rule in RULES}
    weights: dict[str, list[pd.Series]] = {rule: [] for rule in RULES}
    for run in range(options.runs):
        for rule in RULES:
            auc, chosen = measure(options, rule, run)
            found[rule].append(auc)
            weights[rule].append(chosen)
            print(f"run {run} of {options.runs}, {rule}: {auc.round(4).to_dict()}", flush=True)
        if run == 0:
            continue
        rules: dict[str, Any] = {}
        for rule in RULES:
            moved = pd.DataFrame(weights[rule]).nunique() > 1
            rules[rule] = summary(pd.DataFrame(found[rule]).T) | {
                "searches": len(moved),
                "moved": float(moved.mean()),
            }
        command = f"python benchmarks/merge_rules.py --config {options.config} --json {options.json}"
        tree = {
            "command": command + "".join(f' --set "{s}"' for s in options.set),
            "commit": versions().get("commit"),
            "machine": host,
            "size": options.size,
            "rules": rules,
        }
        write_atomic(options.json, json.dumps(tree, indent=2) + "\n")


if __name__ == "__main__":
    main()
