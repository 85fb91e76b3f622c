"""Faults, each compared with the undisturbed run, byte by byte.

    python -m tests.chaos --points 200 --seed 0 --json benchmarks/results/chaos.json
    python -m tests.chaos --kills --json benchmarks/results/chaos_ray.json

    python -m tests.chaos --backend ray --points 18 --seed 0 --json benchmarks/results/chaos_ray_drawn.json

The first draws faults at what a run writes; the second kills every kind of process that a run on Ray has, once; the
third draws on Ray: the driver dies or its disk is full, or another process dies while the driver stands at a point.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.chaos import kills
from tests.chaos.faults import KINDS, RAY_KINDS
from tests.chaos.harness import OUTCOMES, Place, drill


def added(before: dict[str, Any], head: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """Return a table with the faults of an earlier call before its own; commands and commits of both are named."""
    both = {key: f"{before[key]}; {head[key]}" for key in ("command", "commit") if before[key] != head[key]}
    counts = {name: before[name] + table[name] for name in ("points", *OUTCOMES)}
    return {**table, **both, **counts, "faults": before["faults"] + table["faults"]}


def main() -> int:
    """Run the drill and write its table; 0 when every fault left identical results."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=12, help="number of faults")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--kinds", nargs="+", help="draw these kinds alone")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--part", default="1/1", help="2/3: the second third of the faults alone: a drill in pieces")
    parser.add_argument("--add", action="store_true", help="to the faults that the file has")
    parser.add_argument("--backend", choices=["local", "ray"], default="local")
    parser.add_argument("--kills", action="store_true", help="kill the processes of a run on Ray instead")
    parser.add_argument("--workers", type=int, default=1, help="faults at once, with --backend local")
    parser.add_argument("--folder", type=Path, help="where the runs lie (default: a folder that is deleted)")
    given = parser.parse_args()
    command = shlex.join(["python", "-m", "tests.chaos", *sys.argv[1:]])
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    with tempfile.TemporaryDirectory() as scratch:
        place = Place((given.folder or Path(scratch)).resolve(), "ray" if given.kills else given.backend)
        all_kinds, say = KINDS if place.backend == "local" else RAY_KINDS, partial(print, flush=True)
        kinds = tuple(given.kinds or all_kinds)
        if unknown := [kind for kind in kinds if kind not in all_kinds]:
            parser.error(f"--kinds: {unknown[0]} is none of {', '.join(all_kinds)}")
        k, n = map(int, given.part.split("/"))
        table = (
            kills.drill(place.root, say)
            if given.kills
            else drill(place, given.points, given.seed, kinds, say, given.workers, (k, n))
        )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    head = {"command": command, "seed": given.seed, "backend": place.backend, "commit": commit, "machine": machine}
    if given.json:
        before = json.loads(given.json.read_text()) if given.add and given.json.exists() else None
        whole = {**head, **(added(before, head, table) if before else table)}
        given.json.write_text(json.dumps(whole, indent=1) + "\n")
    print({k: v for k, v in table.items() if k != "faults"})
    return 0 if table["identical"] == table["points"] else 1


if __name__ == "__main__":
    sys.exit(main())
