"""Measure, per rule by which merge weights are chosen on V_t, how far a table moves when nothing but rounding differs.

    OMP_NUM_THREADS=1 python benchmarks/merge_rules.py --config jobs/configs/synthetic.yaml \\
        --json benchmarks/results/merge_rules.json

Two things are varied. `start`: as in `noise_floor.py`, ten runs that differ in a seeded 1e-6 added to the lora_A that a
training starts from, over one backbone. `kernels`: runs whose backbone and adapters are computed by other kernels of
the same CPU, as another CPU would have them. Every rule chooses among the same adapters of a run, which are trained
once. `spread` of a row is the largest minus the smallest mean AUC over the runs; `moved` is the share of searches that
choose weights that differ by more than .01 between two runs. The same command resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
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
from lsat_ray.report.tables import chosen_coefficients, has_model
from lsat_ray.runs.folder import versions
from lsat_ray.runs.local import LocalBackend
from lsat_ray.runs.study import study

KERNELS = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "sse4": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "reproducible": {"MKL_CBWR": "COMPATIBLE"},
}
"""Environment of a run, by the name of its kernels."""
ROWS = "strategies=[full-retraining, short-term, long-term, lsat-en, lsat-en-full, lsat-ta, hedge]"
POOLED = "periods.validation_pool=3"
RULES = {
    f"{select}{pool}": (f"search.select={select}", *sets)
    for pool, sets in (("", ()), (", three periods pooled", (POOLED,)))
    for select in ("auc", "log-loss", "posterior-mean")
}
"""What is set, by the name of the rule."""
MOVED = 0.01


def measure(options: argparse.Namespace, rule: str, run: int, folder: Path) -> tuple[pd.Series, pd.Series]:
    """Return the mean AUC of every row that has a model, and the weight that each search chose, of one run.

    Args:
        options: of the command.
        rule: one of `RULES`.
        run: seed of what is added to the start; 0 with `size` 0 adds nothing.
        folder: where the runs lie, their backbone among them.
    """
    first, name = (f"run{run}-rule{place}" for place in (0, list(RULES).index(rule)))
    sets = ("study.every_period=false", ROWS, *RULES[rule], *options.set)
    config = load(options.config, sets, name)
    if not (folder / name / "metrics.parquet").is_file():
        for part in ("adapters", "passes"):
            if name != first and not (folder / name / part).exists():
                shutil.copytree(folder / first / part, folder / name / part, copy_function=os.link)
        with perturbed(run, options.size):
            study(config, folder, LocalBackend(config), lambda _: None)
    frame = pd.read_parquet(folder / name / "metrics.parquet")
    chosen = chosen_coefficients(pd.read_parquet(folder / name / "search" / "coefficients.parquet"))
    auc = frame[frame["strategy"].map(has_model)].groupby("strategy")["auc"].mean()
    return auc, chosen


def spread(found: list[tuple[pd.Series, pd.Series]]) -> dict[str, Any]:
    """Return what the runs of one rule say: see `noise_floor.summary`, and the share of the searches that moved."""
    by_run = pd.DataFrame([chosen for _, chosen in found])
    moved = by_run.max() - by_run.min() > MOVED
    facts = {"searches": len(moved), "moved": float(moved.mean())}
    return summary(pd.DataFrame([auc for auc, _ in found]).T) | facts


def main() -> None:
    """Measure what is missing, and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/merge_rules"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--size", type=float, default=1e-6)
    parser.add_argument("--kernels", choices=KERNELS, help="only train under these (the command calls itself so)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.kernels:
        for rule in RULES:
            measure(options, rule, 0, options.runs_dir / options.kernels)
        return
    start = {rule: [measure(options, rule, run, options.runs_dir) for run in range(options.runs)] for rule in RULES}
    for name, environment in KERNELS.items():
        again = [sys.executable, *sys.argv, "--size", "0", "--kernels", name]
        subprocess.run(again, env=os.environ | environment, check=True)
    options.size = 0.0
    other = {rule: [measure(options, rule, 0, options.runs_dir / name) for name in KERNELS] for rule in RULES}
    command = f"python benchmarks/merge_rules.py --config {options.config} --json {options.json}"
    tree = {
        "command": command + "".join(f' --set "{s}"' for s in options.set),
        "commit": versions().get("commit"),
        "machine": machine(torch.device("cpu"), 1, matmul_peak(torch.device("cpu"))),
        "start": {rule: spread(runs) for rule, runs in start.items()},
        "kernels": {rule: spread(runs) for rule, runs in other.items()},
    }
    write_atomic(options.json, json.dumps(tree, indent=2) + "\n")


if __name__ == "__main__":
    main()
