"""Say which share of a run's wall clock was training and scoring, the construction of the backbone apart.

    lsat-ray replay --config jobs/configs/ml_latest_small.yaml
    python benchmarks/goodput.py runs/ml_latest_small --json benchmarks/results/goodput.json

The run's own `timings.jsonl` is read. Where stages overlap, a moment is booked to the first of them in the order of
`report/account.py`: to training before scoring, to both before everything else. Scoring is what workers do (`score`)
and what the endpoint does (`serve`). The construction of the backbone is taken off the whole, with what starts beside
it. Of a run that was interrupted, the time between the last record and the next start is left out, the work that the
interruption lost with it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import machine, matmul_peak
from lsat_ray.files import write_atomic
from lsat_ray.report.account import wall_clock
from lsat_ray.runs.timings import Timings

USEFUL = ("train", "score", "serve")
"""Stages that count: training steps, and scoring by workers and by the endpoint."""
APART = "backbone"


def without_pauses(timings: pd.DataFrame) -> pd.DataFrame:
    """Return the timings as if every resumption had begun when the last record before it ended.

    Args:
        timings: columns stage, subject, start, seconds.
    """
    timings = timings.copy()
    begun = timings[(timings["stage"] == "start-up") & (timings["subject"] == "")]["start"].sort_values()
    for start in begun.to_list()[:0:-1]:  # the newest first: what came before keeps its own times
        before = timings["start"] < start
        ended = float((timings["start"] + timings["seconds"])[before].max())
        timings.loc[~before, "start"] -= max(0.0, start - ended)
    return timings


def goodput(timings: pd.DataFrame) -> dict[str, Any]:
    """Return the share of the useful stages, and the seconds by stage.

    Args:
        timings: columns stage, subject, start, seconds.
    """
    account = wall_clock(without_pauses(timings)).set_index("stage")["seconds"]
    whole = float(account.sum() - account.get(APART, 0.0))
    useful = float(sum(account.get(stage, 0.0) for stage in USEFUL))
    seconds = {str(stage): round(float(s), 2) for stage, s in account.sort_values(ascending=False).items() if s > 0}
    return {"goodput": round(useful / whole, 4), "wall_s": round(whole, 1), "seconds": seconds}


def main() -> None:
    """Read the run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--json", type=Path, help="file for the result")
    given = parser.parse_args()
    found = goodput(Timings(given.run / "timings.jsonl").frame())
    print(json.dumps(found, indent=1))
    if given.json:
        cpu = torch.device("cpu")
        versions = json.loads((given.run / "versions.json").read_text())
        tree = {"run": given.run.name, **found, "versions": versions, "machine": machine(cpu, 1, matmul_peak(cpu))}
        write_atomic(given.json, json.dumps(tree, indent=1) + "\n")


if __name__ == "__main__":
    main()
