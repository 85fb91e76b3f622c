"""Say what the validation split does to the choice of alpha: its users, alpha's mean and spread, and what is reached.

    python benchmarks/validation_splits.py --config jobs/configs/map_synthetic.yaml --set data.synthetic.users=60 \\
        --set "strategies=[full-retraining, short-term, lsat-en]" --json benchmarks/results/validation_splits.json

A split by user needs users with several samples in a period, so the stream has 60 users and not the config's 400.
The same study runs with V_t at the period's end, with the last share of every user's rows, and with the merge weights
chosen on the splits of three periods together. `alpha_sd` is the standard deviation of the chosen alpha of LSAT-EN over
seeds and periods. The same command resumes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from lsat_ray.cli.front import study
from lsat_ray.config import load
from lsat_ray.files import write_atomic
from lsat_ray.report.tables import chosen_coefficients

SPLITS = {
    "time": (),
    "user": ("periods.validation_by=user",),
    "time, three periods pooled": ("periods.validation_pool=3",),
    "user, three periods pooled": ("periods.validation_by=user", "periods.validation_pool=3"),
}
"""What is set, by the name of the split."""


def facts(folder: Path) -> dict[str, float]:
    """Return what a run says of its validation splits."""
    chosen = chosen_coefficients(pd.read_parquet(folder / "search" / "coefficients.parquet")).reset_index()
    rows = zip(chosen["strategy"].tolist(), chosen["coefficient"].tolist(), strict=True)
    alpha = np.array([a for name, a in rows if name.startswith("lsat-en(") and name != "lsat-en(full)"])
    auc = pd.read_parquet(folder / "metrics.parquet").groupby("strategy")["auc"].mean()
    mean = {str(name): float(value) for name, value in auc.items()}
    ensemble = next(n for n in mean if n.startswith("lsat-en(") and n != "lsat-en(full)")
    return {
        "users": float(np.mean(pd.read_csv(folder / "trainings.csv")["validation_users"].tolist())),
        "alpha_mean": float(alpha.mean()),
        "alpha_sd": float(alpha.std(ddof=1)),
        "searches": float(len(alpha)),
        **{f"auc {name}": mean[name] for name in ("full-retraining", "short-term", ensemble)},
    }


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/validation_splits"))
    options = parser.parse_args()
    found = {}
    for number, (name, sets) in enumerate(SPLITS.items()):
        config = load(options.config, ("seeds=[0, 1, 2]", *sets, *options.set), f"split{number}")
        found[name] = facts(study(config, options.runs_dir))
        print(f"{name}: {found[name]}", flush=True)
    command = f"python benchmarks/validation_splits.py --config {options.config} --json {options.json}"
    command += "".join(f' --set "{one}"' for one in options.set)
    write_atomic(options.json, json.dumps({"command": command, "splits": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
