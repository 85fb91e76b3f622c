"""Kills on a Ray cluster: a process of the run dies or hangs, and the run must go on by itself to the same bytes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos.harness import OUTCOMES, WHOLE, Outcome, Place, attempt, compare
from tests.chaos.processes import TITLES, descendants


def arrived(run: Path) -> int:
    """Return the newest period that has arrived on Ray, 0 before the first."""
    file = run / "watermark.json"
    return json.loads(file.read_text()) if file.exists() else 0


def training(run: Path) -> bool:
    """Say whether the run is in the middle of its trainings."""
    return len(list(run.glob("adapters/*/manifest.json"))) >= 3


def scoring(run: Path) -> bool:
    """Say whether the endpoint is scoring, or about to."""
    return arrived(run) >= 3


@dataclass(frozen=True)
class Kill:
    """What is killed, and when."""

    name: str
    title: str
    """Part of the process's command line; all that have it are struck, of several sessions one."""
    port: int
    """Of the run's endpoint."""
    now: Callable[[Path], bool]
    """Says by the run's folder whether it is time."""
    what: signal.Signals = signal.SIGKILL
    sessions: int = 1
    """Of the run."""


KILLS = {
    kill.name: kill
    for kill in (
        Kill("queue", TITLES["queue"], 18610, training),
        Kill("stream", TITLES["stream"], 18611, training),
        Kill("training-worker", TITLES["training-worker"], 18612, training),
        Kill("session", TITLES["session"], 18620, training),
        Kill("one-of-two-sessions", TITLES["session"], 18621, training, sessions=2),
        Kill("replica", TITLES["replica"], 18613, scoring),
        Kill("proxy", TITLES["proxy"], 18614, scoring),
        Kill("controller", TITLES["controller"], 18615, scoring),
        Kill("trial", "ray::ImplicitFunc", 18619, Path.is_dir),
        Kill("hung-worker", TITLES["training-worker"], 18616, training, signal.SIGSTOP),
        Kill("hung-replica", TITLES["replica"], 18617, scoring, signal.SIGSTOP),
    )
}


def face(root: Path, kill: Kill) -> Outcome:
    """Let a process die, and compare with the undisturbed run, which lies in the same folder."""
    place, began = Place(root, "ray", kill.port, kill.sessions), time.monotonic()
    struck: list[str] = []
    code = attempt(place, kill.name, meanwhile=partial(_strike, place.folder(kill.name), kill, struck))
    if not struck:
        outcome = f"failed: no process {kill.title} was found"
    elif code is None:
        outcome = "hung"
    elif code:
        outcome = f"failed: {' '.join((root / f'{kill.name}.log').read_text().strip().splitlines()[-1:])[:300]}"
    else:
        outcome = compare(place.folder(WHOLE), place.folder(kill.name))
    return Outcome(f"{kill.title} while {kill.now.__name__}", kill.name, round(time.monotonic() - began, 2), outcome)


def _strike(run: Path, kill: Kill, struck: list[str], pid: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and os.path.exists(f"/proc/{pid}"):
        victims = {p: line for p, line in descendants(pid).items() if kill.title in line}
        if len(victims) >= kill.sessions and kill.now(run):
            for victim, line in list(victims.items())[: 1 if kill.sessions > 1 else None]:
                os.kill(victim, kill.what)
                struck.append(line)
            return
        time.sleep(0.05)


def undisturbed(root: Path) -> None:
    """Run the tiny replay in peace, without Ray.

    Raises:
        RuntimeError: when it failed.
    """
    root.mkdir(parents=True, exist_ok=True)
    if attempt(Place(root, "local"), WHOLE) != 0:
        raise RuntimeError((root / f"{WHOLE}.log").read_text()[-3000:])


def drill(root: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Let each kill happen once, and return the table of outcomes."""
    undisturbed(root)
    outcomes = []
    for number, kill in enumerate(KILLS.values(), start=1):
        outcomes.append(face(root, kill))
        say(f"{number}/{len(KILLS)} {kill.name}: {outcomes[-1].outcome} ({outcomes[-1].seconds:.0f} s)")
    counts = {name: sum(o.outcome.partition(":")[0] == name for o in outcomes) for name in OUTCOMES}
    return {"points": len(KILLS), **counts, "faults": [vars(o) for o in outcomes]}
