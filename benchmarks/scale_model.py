"""Predict how a run's wall clock falls with the number of training sessions, from the durations of one measured run.

    for n in 1 2 4; do lsat-ray study --config jobs/configs/study_synthetic.yaml --name sessions$n \\
        --set engine.sessions=$n --set "seeds=[0, 1, 2, 3]"; done
    python benchmarks/scale_model.py --run runs/sessions1 --check runs/sessions2 runs/sessions4 \\
        --json benchmarks/results/scale_model.json --figure benchmarks/results/scale_model.svg

A discrete-event model: sessions take tasks as `runs.tasks.TaskBook` hands them out, the first whose parents are done;
a task takes what it took in the measured run, and each hand-out the median gap between two tasks of that run. Every
session first starts (processes, imports, backbone), which takes what it took the measured one. What else runs while no
session works (start-up, search, tables, report) stays as it was. Three schedules of the same models:

- `back-fill`: a study, every model as soon as its parents are there, then every score;
- `replay`: period by period, a period's models after those of the period before, with a barrier;
- `chains`: only what a warm start links, which no number of sessions makes shorter than its longest chain.

The curves give each session cores of its own, as a cluster does; `here` are the same curves with the cores of the
machine that was measured, which its sessions share evenly: more sessions than cores bring nothing. `--check` sets that
prediction beside real runs; with `--cores` also that for fewer cores, where other work held the rest. `limit` names
what the wall clock is closest to: `work` (more sessions help), `cores` (more machines help), `chain` (the longest chain
of models), `barriers` (waiting for a period's slowest model), or `serial` (what runs while no session works).
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lsat_ray.errors import LsatError
from lsat_ray.files import write_atomic
from lsat_ray.report.reader import RunReader

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TASKS = ("encode", "train", "score")
"""Stages of a task; `score` of a fit is its validation."""


@dataclass(frozen=True)
class Job:
    """A task of the measured run."""

    key: str
    seconds: float
    parents: tuple[str, ...] = ()
    period: int = 0
    """Last period that a model was trained on; 0: a score."""


@dataclass(frozen=True)
class Measured:
    """What a run's timings say."""

    jobs: tuple[Job, ...]
    """In the order in which they were begun."""
    serial: float
    """Seconds in which no session started or worked, but for the gaps between tasks."""
    gap: float
    """Median seconds between two tasks of a session."""
    wall: float
    """Seconds from the first start to the last end."""
    sessions: int
    cores: float = math.inf
    """Of the machine, as many times as a session needs one."""
    starting: float = 0.0
    """Seconds in which the driver was ready and the session was not."""


def measured(run: Path) -> Measured:
    """Read a run that went through without a stop.

    Raises:
        LsatError: when it has no timings.
    """
    folder = RunReader(run)
    if folder.timings is None or folder.config is None:
        raise LsatError(f"{run}: not a finished run; give the folder of one")
    spec = {m["digest"]: m["spec"] for m in folder.manifests}
    rows = folder.timings[folder.timings["stage"].isin(TASKS) & (folder.timings["subject"] != "")]
    spans = rows.assign(end=rows["start"] + rows["seconds"]).groupby("subject")
    table = pd.DataFrame({"start": spans["start"].min(), "end": spans["end"].max(), "seconds": spans["seconds"].sum()})
    table = table.sort_values("start")
    jobs = tuple(
        Job(key, seconds, *_links(spec[key]) if key in spec else ((), 0))
        for key, seconds in zip(map(str, table.index), table["seconds"].tolist(), strict=True)
    )
    first, last = folder.timings["start"].min(), (folder.timings["start"] + folder.timings["seconds"]).max()
    engine = yaml.safe_load(folder.config)["engine"]
    sessions, width = (
        int(engine["sessions"]),
        engine["workers"] * engine["threads"] if engine["backend"] == "ray" else 1,
    )
    cores = int(json.loads((run / "versions.json").read_text())["cores"]) / width
    start, end = table["start"].to_numpy(), np.maximum.accumulate(table["end"].to_numpy())
    idle = np.maximum(0.0, start[1:] - end[:-1])
    gap = float(np.median(idle)) if len(idle) and sessions == 1 else 0.0
    busy = float(end[-1] - start[0] - idle.sum()) if len(start) else 0.0
    up = folder.timings[folder.timings["stage"] == "start-up"]
    starting = float(start[0] - (up["start"] + up["seconds"]).max()) if len(start) and len(up) else 0.0
    serial = float(last - first) - busy - gap * len(idle) - max(0.0, starting)
    return Measured(jobs, max(0.0, serial), gap, float(last - first), sessions, cores, max(0.0, starting))


def _links(spec: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """Return the models that one starts from, and its last period."""
    frozen = (spec.get("frozen") or {}).get("adapters", [])
    parents = tuple(p for p in (spec["init"], *frozen) if p)
    return parents, max((t for t, _ in (*spec["train"], *spec["validation"])), default=0)


def makespan(jobs: Sequence[Job], workers: int, gap: float = 0.0, cores: float = math.inf) -> float:
    """Return the seconds until all jobs are done, handed out in order to sessions as soon as their parents are.

    Args:
        jobs: parents that are none of them count as done.
        workers: sessions.
        gap: seconds that each hand-out takes.
        cores: that the sessions share evenly; a job takes its seconds where it has one for itself.
    """
    known = {j.key for j in jobs}
    waiting = {j.key: {p for p in j.parents if p in known} for j in jobs}
    children: dict[str, list[int]] = {}
    for place, job in enumerate(jobs):
        for parent in waiting[job.key]:
            children.setdefault(parent, []).append(place)
    ready = [place for place, job in enumerate(jobs) if not waiting[job.key]]
    heapq.heapify(ready)
    left: dict[int, float] = {}  # seconds of work left in what runs
    now = 0.0
    while ready or left:
        while ready and len(left) < workers:
            place = heapq.heappop(ready)
            left[place] = gap + jobs[place].seconds
        rate = min(1.0, cores / len(left))
        work, place = min((seconds, place) for place, seconds in left.items())
        now += work / rate
        left = {p: seconds - work for p, seconds in left.items() if p != place}
        for child in children.get(jobs[place].key, ()):
            waiting[jobs[child].key].discard(jobs[place].key)
            if not waiting[jobs[child].key]:
                heapq.heappush(ready, child)
    return now


def stages(run: Measured, schedule: str) -> list[list[Job]]:
    """Return the jobs of a schedule, parted where every session waits for all others."""
    fits = [j for j in run.jobs if j.period]
    scores = [j for j in run.jobs if not j.period]
    if schedule == "back-fill":
        return [fits, scores]
    if schedule == "chains":
        starts = {p for j in fits for p in j.parents}
        return [[j for j in fits if j.parents or j.key in starts]]
    each = max(1, len({j.period for j in fits}))
    parts = [scores[k::each] for k in range(each)]
    by_period = [[j for j in fits if j.period == t] for t in sorted({j.period for j in fits})]
    return [part for pair in zip(by_period, parts, strict=False) for part in pair]


def curve(
    run: Measured, schedule: str, workers: Sequence[int] = WORKERS, cores: float = math.inf
) -> list[dict[str, Any]]:
    """Return seconds, speed-up and what limits it, by the number of sessions that share so many cores."""
    parts = stages(run, schedule)
    serial, starting = (0.0, 0.0) if schedule == "chains" else (run.serial, run.starting)
    work = sum(j.seconds + run.gap for part in parts for j in part)
    unlimited = [makespan(part, max(1, len(part)), run.gap) for part in parts]
    chain = makespan([j for part in parts for j in part], max(1, len(run.jobs)), run.gap)
    alone = serial + starting + sum(makespan(part, 1, run.gap) for part in parts)
    rows = []
    for n in workers:
        started = starting * max(1.0, n / cores)
        seconds = serial + started + sum(makespan(part, n, run.gap, cores) for part in parts)
        shares = {
            "work": work / n,
            "cores": work / cores,
            "chain": chain,
            "barriers": sum(unlimited) - chain,
            "serial": serial + started,
        }
        limit = max(shares, key=lambda k: shares[k])
        rows.append(
            {"sessions": n, "seconds": seconds, "speed_up": alone / seconds if seconds else 1.0, "limit": limit}
        )
    return rows


def check(run: Measured, other: Path, cores: float | None = None, schedule: str = "back-fill") -> dict[str, Any]:
    """Compare the prediction for another run's number of sessions, on its cores or fewer, with its wall clock."""
    found = measured(other)
    cores = cores or found.cores
    (row,) = curve(run, schedule, [found.sessions], cores)
    return {
        "sessions": found.sessions,
        "cores": cores,
        "predicted_s": row["seconds"],
        "measured_s": found.wall,
        "error": row["seconds"] / found.wall - 1,
        "starting_measured_s": found.starting,
        "work_measured_s": sum(j.seconds for j in found.jobs),
        "work_of_the_model_s": sum(j.seconds for j in run.jobs),
    }


def draw(curves: Mapping[str, list[dict[str, Any]]], file: Path) -> None:
    """Draw the speed-up over the number of sessions."""
    from matplotlib.figure import Figure

    from lsat_ray.report.style import BLUE, GREEN, ORANGE, drawing

    with drawing():
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        for (name, rows), colour in zip(curves.items(), (BLUE, ORANGE, GREEN), strict=False):
            x, y = [r["sessions"] for r in rows], [r["speed_up"] for r in rows]
            axes.plot(x, y, color=colour, marker="o", label=f"{name}, in the end limited by: {rows[-1]['limit']}")
        axes.plot(x, x, color="#bbbbbb", linestyle=":", label="as many times as sessions")
        axes.set(xscale="log", yscale="log", xlabel="training sessions", ylabel="speed-up")
        axes.set_xticks(x, [str(n) for n in x])
        axes.legend()
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Read the measured runs, predict, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a finished study with engine.sessions=1")
    parser.add_argument("--replay", type=Path, help="a finished replay with engine.sessions=1: its serial part")
    parser.add_argument("--check", type=Path, nargs="*", default=[], help="the same study with other engine.sessions")
    parser.add_argument("--cores", type=float, help="cores that were free, to check with beside those of the machine")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--figure", type=Path, help="file for the figure (.svg)")
    given = parser.parse_args()
    run = measured(given.run)
    replayed = measured(given.replay) if given.replay else run
    curves = {"back-fill": curve(run, "back-fill"), "replay": curve(replayed, "replay"), "chains": curve(run, "chains")}
    head = ["git", "rev-parse", "HEAD"]
    tree: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/scale_model.py", *sys.argv[1:]]),
        "commit": subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip(),
        "tasks": len(run.jobs),
        "work_s": sum(j.seconds for j in run.jobs),
        "serial_s": run.serial,
        "starting_s": run.starting,
        "gap_s": run.gap,
        "curves": curves,
        "cores": run.cores,
        "here": {name: curve(replayed if name == "replay" else run, name, WORKERS[:4], run.cores) for name in curves},
        "check": [
            check(run, other, cores)
            for cores in (None, *([given.cores] if given.cores else []))
            for other in (given.run, *given.check)
        ],
    }
    if given.json:
        write_atomic(given.json, json.dumps(tree, indent=1) + "\n")
    if given.figure:
        draw(curves, given.figure)
    for name, rows in curves.items():
        print(pd.DataFrame(rows).assign(schedule=name).round(2).to_string(index=False))
    print(pd.DataFrame(tree["check"]).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
