"""Measure what prefix states that were kept save: the same passes with the prefix computed and with it kept.

    python benchmarks/prefix_states.py --json benchmarks/results/prefix_states.json

The two ways take turns within a round; a gain is the median of the rounds' ratios (with the quartiles), in seconds of
processor time on a CPU. Prompts and weights are random, and one adapter is worn. `predicted` was written down before
the first run: by `ensemble_pass.json` a pass costs as much as 320 tokens on nano and 60 on 20m whatever its length, and
kept tokens cost nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ensemble_pass import dressed, prompts
from benchmarks.measuring import machine, matmul_peak
from benchmarks.training_rounds import SHAPES
from lsat_ray.backbone.states import PrefixStates
from lsat_ray.files import write_atomic
from lsat_ray.scoring.score import part

WORK = {
    "one question, the preamble kept": (1, 75, 70),
    "10 candidates, the history kept": (10, 14, 120),
    "100 candidates, the history kept": (100, 14, 120),
    "10 candidates, a long history kept": (10, 14, 400),
}
"""(prompts, own tokens of each, shared prefix)."""
FIXED = {"nano": 320, "20m": 60}
"""Tokens that cost as much as a pass whatever its length."""


def predicted(shape: str, count: int, width: int, prefix: int) -> float | None:
    """Return the gain that was expected."""
    if shape not in FIXED:
        return None
    own = FIXED[shape] + count * width
    return round((own + prefix) / own, 2)


def measure(shape: str, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each work."""
    model, adapters = dressed(SHAPES[shape], device)
    worn = adapters[:1]
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    table = []
    for name, (count, width, prefix) in WORK.items():
        encoded = prompts(count, width, prefix, SHAPES[shape]["vocabulary"])
        known = PrefixStates()
        _, expected = part(model, worn, encoded, states=known)
        spent: dict[str, list[float]] = {"computed": [], "kept": []}
        margin = expected
        for _ in range(rounds):
            for way, times in spent.items():
                states = PrefixStates(list(known.layers)) if way == "kept" else None
                began = clock()
                _, margin = part(model, worn, encoded, states=states)
                times.append(clock() - began)
        low, median, high = np.quantile(np.array(spent["computed"]) / np.array(spent["kept"]), (0.25, 0.5, 0.75))
        table.append(
            {
                "work": name,
                "prompts": count,
                "prefix": prefix,
                "tokens": prefix + count * width,
                **{f"{way}_ms": round(1000 * float(np.median(times)), 2) for way, times in spent.items()},
                "gain": {"low": round(float(low), 2), "median": round(float(median), 2), "high": round(float(high), 2)},
                "predicted": predicted(shape, count, width, prefix),
                "margins_differ_by_at_most": float(np.abs(margin - expected).max()),
            }
        )
        print(shape, table[-1], flush=True)
    return table


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", default=["nano", "20m"], choices=sorted(SHAPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(given.device)
    result: dict[str, Any] = {"rounds": given.rounds, "shapes": {}}
    for shape in given.shapes:
        result["shapes"][shape] = measure(shape, device, given.rounds)
        result["machine"] = machine(device, 1, matmul_peak(device))
        write_atomic(given.json, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
