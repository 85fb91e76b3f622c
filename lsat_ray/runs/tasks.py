"""What training sessions are asked to do, and the book that says who does what."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.baselines.spec import ClassicalSpec
from lsat_ray.config import Experiment
from lsat_ray.data.periods import Slice
from lsat_ray.scoring.model import Model


@dataclass(frozen=True)
class Context:
    """What a session's workers need to begin."""

    config: Experiment
    backbone: str
    """Folder of the weights."""
    store: str
    """Root of the adapter store."""
    titles: tuple[str, ...]
    replayer: Any
    """Handle of the `StreamReplayer`."""


@dataclass(frozen=True)
class Fit:
    """Train the adapter of a spec and publish it."""

    spec: AdapterSpec
    as_of: int
    """The reader's time: no row of a later period may be read."""

    @property
    def key(self) -> str:
        """The adapter's digest."""
        return self.spec.digest

    @property
    def needs(self) -> tuple[str, ...]:
        """Adapters that must be in the store before."""
        return tuple(p.digest for p in self.spec.parents())


@dataclass(frozen=True)
class Score:
    """Compute the margins of a model on some rows."""

    model: Model
    slices: tuple[Slice, ...]
    as_of: int

    @property
    def key(self) -> str:
        """Digest of model and rows."""
        return hashlib.sha256(f"{self.model.digest} {[tuple(s) for s in self.slices]}".encode()).hexdigest()

    @property
    def needs(self) -> tuple[str, ...]:
        """Adapters that must be in the store before."""
        return self.model.adapters


@dataclass(frozen=True)
class Coefficients:
    """Fit merge weights by gradient (a plan's `fit`)."""

    adapters: tuple[str, ...]
    slices: tuple[Slice, ...]
    pull: float
    as_of: int

    @property
    def key(self) -> str:
        """Digest of adapters, rows and pull."""
        return hashlib.sha256(repr((self.adapters, [tuple(s) for s in self.slices], self.pull)).encode()).hexdigest()

    @property
    def needs(self) -> tuple[str, ...]:
        """The adapters."""
        return self.adapters


@dataclass(frozen=True)
class ClassicalFit:
    """Fit a classical recommender and publish it."""

    spec: ClassicalSpec
    as_of: int

    @property
    def key(self) -> str:
        """The model's digest."""
        return self.spec.digest

    @property
    def needs(self) -> tuple[str, ...]:
        """Models that must be in the store before."""
        return tuple(p.digest for p in self.spec.parents())


@dataclass(frozen=True)
class ClassicalScore:
    """Score D_`period` with a classical recommender; its features count what came before each row."""

    spec: ClassicalSpec
    period: int

    @property
    def key(self) -> str:
        """Digest of model and period."""
        return hashlib.sha256(f"{self.spec.digest} {self.period}".encode()).hexdigest()

    @property
    def needs(self) -> tuple[str, ...]:
        """The model."""
        return (self.spec.digest,)


@dataclass(frozen=True)
class InContextScore:
    """Score D_`period` in context: solved rows of the newest period before it stand in the prompt."""

    period: int
    demonstrations: int

    @property
    def key(self) -> str:
        """Name of the pass."""
        return f"in-context {self.demonstrations} {self.period}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing."""
        return ()


Task = Fit | Score | Coefficients | ClassicalFit | ClassicalScore | InContextScore
State = Literal["waiting", "running", "done", "failed"]


@dataclass
class Entry:
    """A task and what became of it."""

    task: Task
    state: State = "waiting"
    session: int | None = None
    result: Any = None


class TaskBook:
    """Tasks in the order of submission; one is handed out when everything that it needs is done.

    Every call can be repeated without harm, so that sessions and driver may be restarted at any moment.
    """

    def __init__(self) -> None:
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        self.present: set[str] = set()
        """Adapters that are in the store."""
        self.closed = False

    def submit(self, tasks: list[Task], present: set[str]) -> None:
        """Add tasks; those that are known stay as they are."""
        self.present |= present
        for task in tasks:
            if task.key not in self.entries:
                self.entries[task.key] = Entry(task)

    def take(self, session: int) -> Task | None:
        """Hand the first task that can run to a session."""
        for entry in self.entries.values():
            if entry.state == "waiting" and all(n in self.present for n in entry.task.needs):
                entry.state, entry.session = "running", session
                return entry.task
        return None

    def done(self, key: str, result: Any) -> None:
        """Record a task's result."""
        entry = self.entries[key]
        entry.state, entry.result = "done", result
        if isinstance(entry.task, Fit | ClassicalFit):
            self.present.add(key)

    def fail(self, key: str, reason: str) -> None:
        """Record that a task cannot be done."""
        self.entries[key].state, self.entries[key].result = "failed", reason

    def restart(self, session: int) -> None:
        """Give back what a restarted session had been doing."""
        for entry in self.entries.values():
            if entry.session == session and entry.state == "running":
                entry.state, entry.session = "waiting", None

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
