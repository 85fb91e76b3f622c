"""Time the default replay of this commit against that of another one, in turns, on one machine.

    python benchmarks/against_commit.py --commit 0fe14c6 --rounds 3 --json benchmarks/results/against_0fe14c6.json

Each run is `python jobs/stream_replay.py --config jobs/configs/synthetic.yaml` in a clean checkout of its commit, with
an empty runs folder (so the backbone is built) and this environment's packages. Every second round begins with the
other commit. `ratio` is this commit's wall clock over the other's, the median of the rounds. The file is written after
every round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import machine, matmul_peak
from lsat_ray.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
REPLAY = ("jobs/stream_replay.py", "--config", "jobs/configs/synthetic.yaml")


def git(*words: str) -> str:
    """Return what git prints."""
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def seconds(tree: Path, runs: Path) -> float:
    """Replay once from a checkout into an empty folder; return the wall clock from start to end of the process."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *REPLAY, "--runs-dir", str(runs)], cwd=tree, env=environment, capture_output=True, text=True
    )
    wall = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return wall


def main() -> None:
    """Run the rounds and write what they took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commit", required=True, help="the other commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    threads = torch.get_num_threads()
    commits = {"this": git("rev-parse", "--short", "HEAD"), "other": git("rev-parse", "--short", options.commit)}
    device = torch.device("cpu")
    facts = machine(device, threads, matmul_peak(device))
    walls: dict[str, list[float]] = {"this": [], "other": []}
    with tempfile.TemporaryDirectory() as scratch:
        trees = {name: Path(scratch) / name for name in commits}
        for name, tree in trees.items():
            git("worktree", "add", "--detach", str(tree), commits[name])
        try:
            for turn in range(options.rounds):
                for name in ("this", "other") if turn % 2 == 0 else ("other", "this"):
                    walls[name].append(round(seconds(trees[name], Path(scratch) / f"runs-{name}-{turn}"), 1))
                    print(f"round {turn + 1}: {commits[name]} {walls[name][-1]} s", flush=True)
                ratios = [round(a / b, 3) for a, b in zip(walls["this"], walls["other"], strict=True)]
                found = {
                    "command": " ".join(("python", *REPLAY)),
                    "commits": commits,
                    "wall_s": walls,
                    "ratios": ratios,
                    "ratio": float(np.median(ratios)),
                    "machine": facts,
                }
                write_atomic(options.json, json.dumps(found, indent=2) + "\n")
        finally:
            for tree in trees.values():
                git("worktree", "remove", "--force", str(tree))


if __name__ == "__main__":
    main()
