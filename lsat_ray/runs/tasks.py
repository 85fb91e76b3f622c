"""What workers are asked to do, and the book that says who does what."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.baselines.spec import ClassicalSpec
from lsat_ray.config import Experiment
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.generative.sasrec import SasrecSpec
from lsat_ray.scoring.model import Model


@dataclass(frozen=True)
class Context:
    """What a worker needs to begin, beside a reader of the stream."""

    config: Experiment
    backbone: str
    """Folder of the weights."""
    store: str
    """Root of the model store."""
    titles: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """Train the model of a spec and publish it in the store."""

    spec: AdapterSpec | ClassicalSpec | SasrecSpec

    @property
    def key(self) -> str:
        """The model's digest."""
        return self.spec.digest

    @property
    def name(self) -> str:
        """What it is called in a message."""
        return f"training of {self.key[:12]} (period {self.as_of})"

    @property
    def needs(self) -> tuple[str, ...]:
        """Models that must be in the store before."""
        return tuple(p.digest for p in self.spec.parents())

    @property
    def as_of(self) -> int:
        """The reader's time: no sample of a later period may be read."""
        return self.spec.last_period


@dataclass(frozen=True)
class Score:
    """Compute what one forward pass says of a slice: float [N], in the order of the stream."""

    model: Model
    """One pass, as `scoring.model.passes` returns it."""
    slice: Slice

    @property
    def key(self) -> str:
        """Digest of pass and slice."""
        return _digest(self.model.digest, tuple(self.slice))

    @property
    def name(self) -> str:
        """What it is called in a message."""
        return f"scoring of period {self.slice.period} {self.slice.part} by {self.model.strategy}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Models that must be in the store before."""
        return self.model.adapters

    @property
    def as_of(self) -> int:
        """The reader's time."""
        return self.slice.period


@dataclass(frozen=True)
class Coefficients:
    """Learn merge weights by gradient (a plan's `learned`)."""

    adapters: tuple[str, ...]
    slices: tuple[Slice, ...]
    pull: float

    @property
    def key(self) -> str:
        """Digest of adapters, slices and pull."""
        return _digest(self.adapters, [tuple(s) for s in self.slices], self.pull)

    @property
    def name(self) -> str:
        """What it is called in a message."""
        return f"learning of merge weights (period {self.as_of})"

    @property
    def needs(self) -> tuple[str, ...]:
        """The adapters."""
        return self.adapters

    @property
    def as_of(self) -> int:
        """The reader's time."""
        return max(s.period for s in self.slices)


@dataclass(frozen=True)
class Find:
    """Search the items for the tests of a next-item row, and publish what is found in the run's store of searches."""

    key: str
    """Its name there (`generative.study.Bench.wanted`)."""
    row: str
    seed: int
    as_of: int
    """The period after which the models were trained."""
    beams: int
    needs: tuple[str, ...]
    """Models that must be in the store before."""

    @property
    def name(self) -> str:
        """What it is called in a message."""
        return f"search of {self.row} (period {self.as_of}, {self.beams} beams)"


class TaskError(LsatError):
    """Tasks have failed for good; the others of their batch may go on."""

    def __init__(self, failed: dict[str, str]) -> None:
        """Say why.

        Args:
            failed: the reason by the task's key; the first is the message.
        """
        super().__init__(next(iter(failed.values())))
        self.failed = failed


Task = Fit | Score | Coefficients | Find
State = Literal["waiting", "running", "done", "failed"]


@dataclass
class Entry:
    """A task and what became of it."""

    task: Task
    state: State = "waiting"
    session: int | None = None
    result: Any = None
    tries: int = 0
    """Times that it was handed out."""


class TaskBook:
    """Tasks in the order of submission; one is handed out when everything that it needs is done.

    Every call can be repeated without harm, so that sessions and driver may be restarted at any moment. A book that
    was lost is begun anew: the driver submits again, and what is told of tasks that the book does not know is dropped.
    """

    def __init__(self, tries: int = 3, log: str = "") -> None:
        """Begin an empty book.

        Args:
            tries: times that a task is handed out before it counts as failed.
            log: where the sessions write what happened to them; named in messages.
        """
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        self.present: set[str] = set()
        """Models that are in the store."""
        self.closed = False
        self.micro_batches = 1
        """Micro-batches that a step needs at least, learned where memory ran out."""
        self._tries, self._log = tries, log

    def submit(self, tasks: list[Task], present: set[str]) -> None:
        """Add tasks; those that are known stay as they are."""
        self.present |= present
        for task in tasks:
            if task.key not in self.entries:
                self.entries[task.key] = Entry(task)

    def take(self, session: int) -> Task | None:
        """Hand the first task that can run to a session; one whose answer was lost on the way gets its task again."""
        for entry in self.entries.values():
            if entry.state == "running" and entry.session == session:
                return entry.task
        for entry in self.entries.values():
            if entry.state == "waiting" and all(n in self.present for n in entry.task.needs):
                entry.state, entry.session = "running", session
                entry.tries += 1
                return entry.task
        return None

    def done(self, key: str, result: Any) -> None:
        """Record a task's result."""
        if (entry := self.entries.get(key)) is None:
            return
        entry.state, entry.result = "done", result
        if isinstance(entry.task, Fit):
            self.present.add(key)

    def fail(self, key: str, reason: str) -> None:
        """Record that a task cannot be done."""
        if (entry := self.entries.get(key)) is not None:
            entry.state, entry.result = "failed", reason

    def give_back(self, session: int, reason: str) -> None:
        """Give back what a session had been doing when it stumbled or died; after the last try it has failed."""
        for entry in self.entries.values():
            if entry.session != session or entry.state != "running":
                continue
            entry.state, entry.session = "waiting", None
            if entry.tries >= self._tries:
                log = f"; see {self._log}" if self._log else ""
                self.fail(entry.task.key, f"{entry.task.name}: given up after {entry.tries} tries ({reason}){log}")

    def split(self, session: int, micro_batches: int) -> None:
        """Give back what did not fit a session's memory, which is no try; steps have more micro-batches from now on."""
        self.micro_batches = max(self.micro_batches, micro_batches)
        for entry in self.entries.values():
            if entry.session == session and entry.state == "running":
                entry.state, entry.session, entry.tries = "waiting", None, entry.tries - 1

    def knows(self, keys: list[str]) -> bool:
        """Return whether all tasks were submitted to this book."""
        return all(k in self.entries for k in keys)

    def finished(self, keys: list[str]) -> bool:
        """Return whether all are done or one has failed."""
        states = [self.entries[k].state for k in keys]
        return "failed" in states or all(s == "done" for s in states)

    def forget(self, keys: list[str]) -> None:
        """Drop the results of finished tasks."""
        for key in keys:
            self.entries.pop(key, None)

    def counts(self) -> dict[str, int]:
        """Return how many tasks are in each state."""
        out = {"waiting": 0, "running": 0, "done": 0, "failed": 0}
        for entry in self.entries.values():
            out[entry.state] += 1
        return out


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
