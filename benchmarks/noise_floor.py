"""Measure, per rule of `recipe.select`, how far a table moves when nothing but rounding differs.

    OMP_NUM_THREADS=1 python benchmarks/noise_floor.py --config jobs/configs/synthetic.yaml \\
        --json benchmarks/results/noise_floor.json

Every rule gets the same small study ten times over the local backend; the runs differ in a seeded 1e-6 that is added to
the lora_A that a training starts from, which stands for what another number of workers or another BLAS does. `spread`
of a row is the largest minus the smallest mean AUC over these runs; a rule's `floor` is the largest spread of its rows.
The same command resumes: finished runs are read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import machine, matmul_peak
from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.config import load
from lsat_ray.files import write_atomic
from lsat_ray.report.tables import has_model
from lsat_ray.runs.local import LocalBackend
from lsat_ray.runs.study import study
from lsat_ray.training.selection import RULES

SMALL = (
    "data.keep_last=1200",
    "data.synthetic.warmup=4000",
    "periods.number=4",
    "replay.long_periods=2",
    "backbone.nano.hidden=32",
    "study.every_period=false",
    "strategies=[full-retraining, fine-tuning, short-term, long-term, lsat-en, lsat-ta]",
    "recipe.epochs=6",
    "recipe.evals_per_epoch=2",
    "recipe.patience=4",
)
"""The default config in small: four periods of which two are tested, trained until validation stops improving."""

LARGER = "auc, V_t doubled"
"""The sixth row: the highest AUC on a validation split of twice the share."""


@contextmanager
def perturbed(run: int, size: float) -> Iterator[None]:
    """Let every fresh lora_A differ from its usual start by a seeded uniform number of at most `size`."""
    reset = AdaptedBackbone.reset

    def shaken(self: AdaptedBackbone, seed: int) -> None:
        reset(self, seed)
        generator = torch.Generator().manual_seed(1000 * run + seed % 1000)
        with torch.no_grad():
            for name, parameter in self.slot_parameters().items():
                if ".lora_A." in name:
                    noise = torch.rand(parameter.shape, generator=generator) * 2 - 1
                    parameter.add_(size * noise.to(parameter.device))

    AdaptedBackbone.reset = shaken  # type: ignore[method-assign]
    try:
        yield
    finally:
        AdaptedBackbone.reset = reset  # type: ignore[method-assign]


def measure(options: argparse.Namespace, rule: str, run: int) -> pd.Series:
    """Return the mean AUC of every row that has a model, by strategy, of one run."""
    select = "auc" if rule == LARGER else rule
    config = load(options.config, (*SMALL, *options.set, f"recipe.select={select}"), f"noise-{select}-{run}")
    if rule == LARGER:
        wider = config.periods.model_copy(update={"validation": 2 * config.periods.validation})
        config = config.model_copy(update={"periods": wider, "name": f"noise-wider-{run}"})
    file = Path(options.runs_dir) / config.name / "metrics.parquet"
    if not file.is_file():
        with perturbed(run, options.size):
            study(config, Path(options.runs_dir), LocalBackend(config), lambda _: None)
    frame = pd.read_parquet(file)
    frame = frame[frame["strategy"].map(has_model)]
    return frame.groupby("strategy")["auc"].mean()


def summary(by_run: pd.DataFrame) -> dict[str, Any]:
    """Return what a rule's runs say.

    Args:
        by_run: mean AUC, one row per strategy and one column per run.
    """
    trained = by_run.drop(index="frozen", errors="ignore")
    spread = trained.max(axis=1) - trained.min(axis=1)
    rows = {
        str(name): {"mean": float(v.mean()), "sd": float(v.std(ddof=1)), "spread": float(v.max() - v.min())}
        for name, v in trained.iterrows()
    }
    return {
        "floor": float(spread.max()),
        "mean_spread": float(spread.mean()),
        "mean_auc": float(trained.to_numpy().mean()),
        "runs": trained.shape[1],
        "rows": rows,
    }


def main() -> None:
    """Measure what is missing, in rounds over the rules, and write the JSON after every round."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="after SMALL")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/noise_floor"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--size", type=float, default=1e-6)
    parser.add_argument("--rules", nargs="+", choices=[*RULES, LARGER], default=[*RULES, LARGER])
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[int, pd.Series]] = {rule: {} for rule in options.rules}
    host = machine(torch.device("cpu"), 1, matmul_peak(torch.device("cpu")))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    for run in range(options.runs):
        for rule in options.rules:
            found[rule][run] = measure(options, rule, run)
            print(f"run {run} of {options.runs}, {rule}: {found[rule][run].round(4).to_dict()}", flush=True)
        if run == 0:
            continue
        rules = {rule: summary(pd.DataFrame(by_run)) for rule, by_run in found.items()}
        tree = {
            "command": f"python benchmarks/noise_floor.py --config {options.config} --json {options.json}"
            + "".join(f' --set "{s}"' for s in options.set)
            + ("" if set(options.rules) == {*RULES, LARGER} else f" --rules {' '.join(options.rules)}"),
            "commit": commit,
            "machine": host,
            "small": SMALL,
            "size": options.size,
            "rules": rules,
            "calmest": min(rules, key=lambda r: rules[r]["mean_spread"]),
            "mean_auc_sd_over_rules": float(np.std([r["mean_auc"] for r in rules.values()])),
        }
        write_atomic(options.json, json.dumps(tree, indent=2) + "\n")


if __name__ == "__main__":
    main()
