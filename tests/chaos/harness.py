"""Run a tiny replay with faults, go on by the same command, and compare with the undisturbed run byte by byte."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.chaos.faults import CRASH, REAL, Fault, leave, sample, strike

CONFIG = """
data: {format: synthetic, history: 3, keep_last: 300, synthetic: {users: 30, items: 60, warmup: 200, half_life: 192}}
periods: {number: 5, validation: 0.2}
replay: {long_periods: 2}
backbone: {device: cpu, nano: {hidden: 32, vocabulary: 420, epochs: 0.5}}
lora: {rank: 2, alpha: 4}
recipe: {lr: 0.005, epochs: 1, batch_size: 32, max_steps: 2}
engine: {workers: 1, checkpoint_every: 1}
search: {grid: [0, 0.5, 1]}
strategies: [fine-tuning, lsat-en, mf/fine-tuning]
study: {figures: false}
"""
WHOLE = "undisturbed"
COMPARED = ("metrics.parquet", "ledger.jsonl", "current.json", "scores/**/*", "adapters/**/*", "search/coefficients/*")
DEADLINE = {"local": 300.0, "ray": 400.0}
"""Seconds after which a run counts as hung."""


@dataclass(frozen=True)
class Place:
    """Where the runs of one harness lie, and what runs them."""

    root: Path
    backend: str
    port: int = 18600
    sessions: int = 1
    """Training sessions, on Ray."""

    def folder(self, run: str) -> Path:
        """Return a run's folder."""
        return self.root / run


@dataclass(frozen=True)
class Outcome:
    """What became of a fault."""

    point: str
    kind: str
    seconds: float
    outcome: str
    """`identical`, `lost`, `doubled`, `different`, `failed` or `hung`; what and where behind a colon."""


def drill(
    place: Place,
    number: int,
    seed: int,
    kinds: tuple[str, ...],
    say: Callable[[str], None],
    workers: int = 1,
    part: tuple[int, int] = (1, 1),
) -> dict[str, Any]:
    """Draw faults, run each, and return the table of outcomes.

    Args:
        place: folder and backend.
        number: of faults.
        seed: of the draw.
        kinds: that are drawn.
        say: hears a line per fault.
        workers: faults at once (local backend).
        part: (k, n) faces the k-th n-th of the faults alone, so that a long drill can be done in pieces.
    """
    place.root.mkdir(parents=True, exist_ok=True)
    before = place.folder(WHOLE).is_dir() and not set(kinds) & set(CRASH)  # the undisturbed run of an earlier call
    points = json.loads((place.root / "points.json").read_text()) if before else _points(place)
    k, n = part
    faults = sample(points, number, seed, kinds)[number * (k - 1) // n : number * k // n]
    if crashes := [f for f in faults if f.kind in CRASH]:
        _expect(place, attempt(place, WHOLE, crashes, seed))
    elif not before:
        place.folder("points").rename(place.folder(WHOLE))
    outcomes = []
    with ThreadPoolExecutor(workers) as pool:
        for fault, outcome in zip(faults, pool.map(partial(face, place), faults), strict=True):
            outcomes.append(outcome)
            say(f"{fault.number + 1}/{number} {fault.kind} {fault.name}: {outcome.outcome}")
    counts = {name: sum(o.outcome.partition(":")[0] == name for o in outcomes) for name in OUTCOMES}
    return {"points": len(faults), **counts, "passed": len(points), "faults": [vars(o) for o in outcomes]}


OUTCOMES = ("identical", "lost", "doubled", "different", "failed", "hung")


def face(place: Place, fault: Fault) -> Outcome:
    """Let a fault happen, go on by the same command, and compare; another process's death costs no second command."""
    began = time.monotonic()
    if fault.kind not in CRASH:  # what an earlier call left
        shutil.rmtree(place.folder(fault.run), ignore_errors=True)
    if fault.kind in REAL:
        code = attempt(place, fault.run, [fault])
        if code is None or code == 0:
            return _outcome(fault, began, "hung: at the fault" if code is None else "failed: the fault did not happen")
    code = attempt(place, fault.run, [] if fault.kind in (*REAL, *CRASH) else [fault])
    if code is None:
        return _outcome(fault, began, "hung: after the fault")
    if code:
        last = (place.root / f"{fault.run}.log").read_text().strip().splitlines()[-1:]
        return _outcome(fault, began, f"failed: {' '.join(last)[:300]}")
    return _outcome(fault, began, compare(place.folder(WHOLE), place.folder(fault.run)))


def _outcome(fault: Fault, began: float, outcome: str) -> Outcome:
    return Outcome(f"{fault.point} {fault.name}", fault.kind, round(time.monotonic() - began, 2), outcome)


def compare(whole: Path, mine: Path) -> str:
    """Say whether a run ended as the undisturbed one did: ledger by record, then every file byte by byte."""
    expected, found = _records(whole), _records(mine)
    if missing := [r for r in expected if r not in found]:
        return f"lost: ledger {missing[0]}"
    if len(found) != len(set(found)) or len(found) > len(expected):
        return f"doubled: {len(found)} records in the ledger, not {len(expected)}"
    ours, theirs = _files(mine), _files(whole)
    if missing_files := sorted(theirs.keys() - ours.keys()):
        return f"lost: {missing_files[0]}"
    if more := sorted(ours.keys() - theirs.keys()):
        return f"doubled: {more[0]}"
    differing = [name for name in theirs if ours[name].read_bytes() != theirs[name].read_bytes()]
    return f"different: {differing[0]}" if differing else "identical"


def _records(run: Path) -> list[tuple[Any, ...]]:
    records = map(json.loads, (run / "ledger.jsonl").read_text().splitlines())
    return [(r["seed"], r["strategy"], r["period"], r["stage"]) for r in records]


def _files(run: Path) -> dict[str, Path]:
    """Return the files that must not depend on how a run came about; drafts and what was put aside are hidden."""
    names = [(str(f.relative_to(run)), f) for pattern in COMPARED for f in sorted(run.glob(pattern)) if f.is_file()]
    return {name: file for name, file in names if not any(part.startswith(".") for part in Path(name).parts)}


def _points(place: Place) -> list[str]:
    """Return the points that a run passes; the first run also builds the backbone that all others share."""
    _expect(place, attempt(place, "points"))
    return json.loads((place.root / "points.json").read_text())


def _expect(place: Place, code: int | None) -> None:
    if code != 0:
        logs = sorted(place.root.glob("*.log"), key=lambda p: p.stat().st_mtime)
        raise RuntimeError(f"a run without a fault ended with {code}:\n{logs[-1].read_text()[-3000:]}")


# One attempt, in a process of its own


def attempt(
    place: Place,
    run: str,
    faults: list[Fault] | None = None,
    seed: int = 0,
    meanwhile: Callable[[int], None] | None = None,
) -> int | None:
    """Run the command once in a fresh process; return its exit code, None when it hung.

    Args:
        place: where and by what.
        run: name of the run.
        faults: that the process meets.
        seed: of what they damage.
        meanwhile: is called beside it, with its process id.
    """
    context = multiprocessing.get_context("forkserver")  # clean processes that have paid for the imports already
    context.set_forkserver_preload(["tests.chaos.preload"])
    process = context.Process(target=_work, args=(place, run, faults or [], seed))
    process.start()
    if meanwhile:
        meanwhile(process.pid or 0)
    process.join(DEADLINE[place.backend])
    code = process.exitcode
    _end(process.pid)  # what a killed driver leaves running on this machine
    process.join()
    return code


def _end(group: int | None) -> None:
    try:
        os.killpg(group or 0, signal.SIGKILL)
    except ProcessLookupError:
        return


def _work(place: Place, run: str, faults: list[Fault], seed: int) -> None:
    """Be the process of one attempt: its own group, its output in a log."""
    os.setsid()
    log = os.open(place.root / f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        _replay(place, run, faults, seed)
    except BaseException:  # noqa: BLE001 - what a user sees on the terminal
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def _replay(place: Place, run: str, faults: list[Fault], seed: int) -> None:
    from lsat_ray import report
    from lsat_ray.config import Experiment
    from lsat_ray.runs.replay import replay
    from tests.chaos.points import instrument

    tree = {**yaml.safe_load(CONFIG), "name": run, "serve": {"port": place.port}}
    tree["engine"] |= {"kind": "torch", "sessions": place.sessions}  # so that both backends end with the same bytes
    config = Experiment.model_validate(tree)
    backend: Any
    if place.backend == "local":
        from lsat_ray.runs.local import LocalBackend

        backend = LocalBackend(config)
    else:
        from lsat_ray.distributed import cluster

        os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = "20"
        cluster.settle()
        from lsat_ray.distributed.backend import RayBackend

        backend = RayBackend(config)
    # Figures decide nothing and take longer than all the rest.
    report.write = lambda *_, before_page, **__: before_page()
    passed: list[str] = []

    def visit(name: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # the backbone, which only the first run builds
        for fault in [f for f in faults if f.point == len(passed)]:
            assert fault.name == name, f"point {fault.point} is {name!r} here, and was {fault.name!r}"
            if fault.kind in CRASH:
                leave(fault, place.folder(run), seed)
            else:
                strike(fault.kind)
        passed.append(name)

    if run == "points" or faults:
        instrument(visit)
    replay(config, place.root, backend, lambda line: print(line, flush=True))
    if missed := [f for f in faults if f.point >= len(passed)]:
        raise RuntimeError(f"the fault did not happen: point {missed[0].point} was not passed")
    if run == "points":
        (place.root / "points.json").write_text(json.dumps(passed))
