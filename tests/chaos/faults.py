"""What is done at a fault point: to the process, or to what lies on the disk."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.processes import TITLES, slay

REAL = ("kill", "full")
"""Kinds that happen to the running process: SIGKILL; a disk that is full once."""
CRASH = ("cut", "torn", "flip", "draft")
"""Kinds that are what a dead process leaves: the disk as it stood at the point, and with the ledger's last line torn, a
byte of an adapter's file flipped, or half-written drafts lying about."""
KINDS = (*REAL, *CRASH)
"""Kinds of the local backend."""
RAY_KINDS = (*REAL, *TITLES)
"""Kinds on Ray: what happens to the driver, and the death of another process while the driver stands at the point."""


@dataclass(frozen=True)
class Fault:
    """A kind at a point."""

    number: int
    point: int
    """Place among the points that the undisturbed run passes."""
    name: str
    """The point's name."""
    kind: str

    @property
    def run(self) -> str:
        """Name of its run."""
        return f"fault-{self.number:03d}-{self.kind}"


def strike(kind: str) -> None:
    """Do what happens to the process, or to another one of its run."""
    if kind in TITLES:
        return slay(TITLES[kind])
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def leave(fault: Fault, run: Path, seed: int) -> None:
    """Copy a run's folder as it stands into the fault's own, and damage the copy."""
    mine = run.with_name(fault.run)
    shutil.copytree(run, mine)
    chance = random.Random(f"{seed} {fault.number}")
    if fault.kind == "torn":
        ledger = mine / "ledger.jsonl"
        raw = ledger.read_bytes()
        last = raw.rstrip(b"\n").rfind(b"\n") + 1
        ledger.write_bytes(raw[: chance.randrange(last + 1, len(raw))])
    elif fault.kind == "flip":
        file = chance.choice(sorted(p for p in (mine / "adapters").glob("[!.]*/*") if p.is_file()))
        data = bytearray(file.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
    elif fault.kind == "draft":
        _leave_drafts(mine, chance)


def _leave_drafts(run: Path, chance: random.Random) -> None:
    """Put half of a file beside it, and half of an adapter beside the adapters."""
    file = chance.choice(sorted(p for p in run.rglob("[!.]*") if p.is_file()))
    file.with_name(f".{file.name}.{chance.randbytes(16).hex()}").write_bytes(
        file.read_bytes()[: file.stat().st_size // 2]
    )
    draft = run / "adapters" / f".{chance.randbytes(32).hex()}.{chance.randbytes(16).hex()}"
    draft.mkdir(parents=True)
    (draft / "adapter_model.safetensors").write_bytes(chance.randbytes(100))


def sample(points: list[str], number: int, seed: int, kinds: tuple[str, ...] = KINDS) -> list[Fault]:
    """Draw faults: every kind equally often, each at points drawn without replacement as long as there are some."""
    chance = random.Random(seed)

    def window(kind: str) -> list[int]:
        """Return the points at which a kind can happen."""
        found = range(len(points))
        if kind == "draft":
            found = found[2:]
        elif kind == "torn":
            found = found[points.index("after append ledger.jsonl") + 1 :]
        elif kind == "flip":
            found = found[next(i for i, name in enumerate(points) if name.startswith("after store")) + 1 :]
        elif kind in TITLES:  # all of them live from the first change of the endpoint to the last
            swaps = [i for i, name in enumerate(points) if name.startswith("after swap")]
            found = found[swaps[0] : swaps[-1] + 1]
        return list(found)

    faults: list[Fault] = []
    left: dict[str, list[int]] = {}
    for n in range(number):
        kind = kinds[n % len(kinds)]
        if not left.get(kind):
            left[kind] = window(kind)
            chance.shuffle(left[kind])
        place = left[kind].pop()
        faults.append(Fault(n, place, points[place], kind))
    return faults
