"""Measure what the safety costs: the default replay in one process, with it and without it, side by side.

    python benchmarks/safety_cost.py --pairs 5 --set data.keep_last=2800 --set periods.number=7 \\
        --set replay.long_periods=4 --json benchmarks/results/safety_cost.json

Without it means: no fsync, no SHA-256 of what is published, no verification of what is read, no states inside fits
(drafts are still renamed, and the ledger is still looked up: both take microseconds). Runs alternate, and every second
pair begins with the other kind. The backbone is built once, before the first pair. Each run is a process of its own;
its wall clock and processor time (user and system, children included) are taken from start to end. `ratio` is with over
without, the median of the pairs.

`inside` is read in the runs with the safety alone: the seconds that passed within the calls above, as a share of that
run's wall clock. It needs no second run, so noise of the machine moves it less.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

KINDS = ("with", "without")


def run(kind: str, folder: Path, name: str, sets: list[str]) -> dict[str, float]:
    """Run the replay once in a process of its own; return its seconds."""
    line = [sys.executable, __file__, "--child", kind, "--folder", str(folder), "--name", name]
    line += [part for s in sets for part in ("--set", s)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, **json.loads(done.stdout.splitlines()[-1])}


def child(kind: str, folder: Path, name: str, sets: list[str]) -> None:
    """Be one run: with the safety, timed, or without it; print what was measured inside as the last line."""
    from lsat_ray import replay
    from lsat_ray.adapters import store
    from lsat_ray.cli.front import load_config
    from lsat_ray.training.checkpoint import Checkpointer

    inside = {"inside_s": 0.0, "calls": 0.0}
    if kind == "with":
        depth = 0

        def timed(call: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(call)
            def passed(*args: Any, **kwargs: Any) -> Any:
                nonlocal depth
                began, depth = time.perf_counter(), depth + 1
                try:
                    return call(*args, **kwargs)
                finally:
                    depth -= 1
                    inside["calls"] += 1
                    inside["inside_s"] += (time.perf_counter() - began) * (depth == 0)

            return passed

        os.fsync = timed(os.fsync)
        store.sha256_of = timed(store.sha256_of)  # type: ignore[assignment]
        store.AdapterStore._verified = timed(store.AdapterStore._verified)  # type: ignore[method-assign]
        Checkpointer.save = timed(Checkpointer.save)  # type: ignore[method-assign]
    else:
        os.fsync = lambda _: None  # type: ignore[assignment]
        store.sha256_of = lambda _: "0" * 64  # type: ignore[assignment]
        store.AdapterStore._verified = lambda self, digest: self.root / digest  # type: ignore[method-assign]
        Checkpointer.due = lambda self, step: False  # type: ignore[method-assign]
    replay(load_config(None, ["engine.backend=local", *sets], name), folder, lambda line: print(line))
    print(json.dumps(inside))


def main() -> None:
    """Run the pairs, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="sets", help="section.key=value over the default")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.folder, given.name, given.sets)
        return
    pairs: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        run("with", Path(scratch), "backbone", given.sets)
        for number in range(given.pairs):
            order = KINDS if number % 2 == 0 else KINDS[::-1]
            pairs.append({kind: run(kind, Path(scratch), f"{kind}{number}", given.sets) for kind in order})
            a, b = pairs[-1]["with"], pairs[-1]["without"]
            told = [f"{k} {x['wall_s']:.1f} s ({x['cpu_s']:.1f} CPU)" for k, x in (("with", a), ("without", b))]
            print(", ".join(told), flush=True)
            write(pairs, given.json)


def write(pairs: list[dict[str, dict[str, float]]], file: Path | None) -> None:
    """Print what the pairs so far say, and write it: a run that is stopped leaves what it has measured."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    tree = {
        "command": shlex.join(["python", "benchmarks/safety_cost.py", *sys.argv[1:]]),
        "commit": commit.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f} at the end",
        "ratio_wall": float(np.median([p["with"]["wall_s"] / p["without"]["wall_s"] for p in pairs])),
        "ratio_cpu": float(np.median([p["with"]["cpu_s"] / p["without"]["cpu_s"] for p in pairs])),
        "inside": float(np.median([p["with"]["inside_s"] / p["with"]["wall_s"] for p in pairs])),
        "pairs": pairs,
    }
    print({k: v for k, v in tree.items() if k != "pairs"}, flush=True)
    if file:
        file.write_text(json.dumps(tree, indent=1) + "\n")


if __name__ == "__main__":
    main()
