"""The processes of a run on Ray: found below its driver, and killed so that it is certain that they are dead."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

TITLES = {
    "queue": "ray::TrainingQueue",
    "stream": "ray::StreamReplayer",
    "training-worker": "RayTrainWorker",
    "session": "TrainController",
    "replica": "ServeReplica:",
    "proxy": "ray::ProxyActor",
    "controller": "ray::ServeController",
}
"""By kind, part of the command line of what runs as long as the replay does."""


def descendants(pid: int) -> dict[int, str]:
    """Return the command lines of all processes below one, by process id."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below, new = set(), {pid}
    while new:
        new = {p for p, parent in parents.items() if parent in new} - below
        below |= new
    lines = {}
    for p in below:
        try:
            lines[p] = Path(f"/proc/{p}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return lines


def process_of(pid: int, title: str) -> int | None:
    """Return the process below another whose command line has a title, or None."""
    return next((p for p, words in descendants(pid).items() if title in words), None)


def lose_head(pid: int) -> None:
    """Kill the head that a process has started."""
    head = process_of(pid, "gcs_server")
    assert head
    os.kill(head, signal.SIGKILL)


def slay(title: str, patience_s: float = 120.0) -> None:
    """Kill every process of a title below this one, and return when they are gone.

    Args:
        title: part of the command line.
        patience_s: seconds in which one must be found (it may be on its way), and in which all must be gone.

    Raises:
        RuntimeError: when there was none, or one did not die: then the fault did not happen.
    """
    deadline = time.monotonic() + patience_s
    while not (victims := [p for p, line in descendants(os.getpid()).items() if title in line]):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the fault did not happen: no process {title}")
        time.sleep(0.05)
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    while alive := [p for p in victims if title in descendants(os.getpid()).get(p, "")]:  # a zombie has no command line
        if time.monotonic() > deadline:
            raise RuntimeError(f"the fault did not happen: {alive} did not die")
        time.sleep(0.05)
