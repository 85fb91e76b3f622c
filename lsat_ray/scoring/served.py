"""What is served: a version, its models, and the small file from which a restarted replica learns them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsat_ray.adapters.store import AdapterStore
from lsat_ray.errors import LsatError
from lsat_ray.files import write_atomic
from lsat_ray.scoring.model import Model

CURRENT = "current.json"
"""File in the run folder; its rename into place is the moment at which a version is committed."""

PAST = "served"
"""Folder in the run folder with everything that was ever served, by number."""

FROZEN = Model("frozen", 0, "frozen")
"""What is served before the first publish: the backbone without adapters."""


@dataclass(frozen=True)
class Served:
    """Models that are served together; they change together or not at all."""

    version: int
    models: tuple[Model, ...]
    """The first is the one that answers where no strategy is named."""
    candidate: Model | None = None
    """A model on trial: it answers a share of the users, or is scored beside the default and not answered."""
    share: float = 0.0
    """Share of users that the candidate answers; 0: nobody, it is scored in the shadow."""

    def __post_init__(self) -> None:
        if not self.models:
            raise LsatError("publish: no models; name at least one")
        if not 0 <= self.share <= 1 or (self.share and self.candidate is None):
            raise LsatError(f"publish: share {self.share:g} of users; give a candidate and a share from 0 to 1")
        names = self.names
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise LsatError(f"publish: strategy {twice[0]!r} occurs twice; give each model a name or a seed of its own")

    @property
    def names(self) -> list[str]:
        """Name of each model: its strategy, with `@seed` behind it where the seed is not the first model's."""
        first = self.models[0].seed
        return [m.strategy if m.seed == first else f"{m.strategy}@{m.seed}" for m in self.models]

    @property
    def digest(self) -> str:
        """SHA-256 of all fields."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def all_models(self) -> tuple[Model, ...]:
        """The models, the candidate included."""
        return (*self.models, self.candidate) if self.candidate else self.models

    def shadowing(self, model: Model) -> Served:
        """Return the same with a candidate in the shadow: it is scored on live requests and answers nobody."""
        return Served(self.version, self.models, model)

    def trying(self, share: float) -> Served:
        """Return the same with the candidate answering a share of the users."""
        return Served(self.version, self.models, self._tried, share)

    def promoted(self) -> Served:
        """Return the candidate in the first place, where it answers everybody who names no model.

        It replaces the model of its name; where there is none, it replaces the one that was first.
        """
        candidate = self._tried
        others = [m for m in self.models if (m.strategy, m.seed) != (candidate.strategy, candidate.seed)]
        kept = others if len(others) < len(self.models) else others[1:]
        return Served(self.version, (candidate, *kept))

    def withdrawn(self) -> Served:
        """Return the same without the candidate."""
        assert self._tried
        return Served(self.version, self.models)

    @property
    def _tried(self) -> Model:
        if self.candidate is None:
            raise LsatError("no model is on trial; put one into the shadow first")
        return self.candidate

    def on_trial(self, user: str) -> bool:
        """Return whether the candidate answers this user: always the same for one user and one candidate."""
        if self.candidate is None:
            return False
        place = hashlib.sha256(f"{self.candidate.digest} {user}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(place[:8]) < self.share * 2.0**64

    def select(self, name: str | None) -> Model:
        """Return the model of that name (the first when None).

        Raises:
            LsatError: naming those that are served.
        """
        if name is None:
            return self.models[0]
        try:
            return self.models[self.names.index(name)]
        except ValueError as error:
            raise LsatError(f"strategy {name!r} is not served; served are {', '.join(self.names)}") from error

    def words(self) -> str:
        """Say in one line what is served."""
        trial = ""
        if self.candidate:
            where = f"to {self.share:.0%} of the users" if self.share else "in the shadow"
            trial = f", candidate {self.candidate.strategy} of period {self.candidate.period} {where}"
        first, more = self.models[0], len(self.models) - 1
        return f"version {self.version}: {first.strategy} of period {first.period} and {more} more{trial}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        tree: dict[str, Any] = {"version": self.version, "models": [m.to_json() for m in self.models]}
        return {**tree, "candidate": self.candidate.to_json(), "share": self.share} if self.candidate else tree

    @staticmethod
    def from_json(tree: dict[str, Any]) -> Served:
        """Read what `to_json` wrote."""
        candidate = Model.from_json(tree["candidate"]) if tree.get("candidate") else None
        models = tuple(Model.from_json(m) for m in tree["models"])
        return Served(int(tree["version"]), models, candidate, float(tree.get("share", 0.0)))


def write_current(run_dir: Path, served: Served) -> None:
    """Replace the run's `current.json` durably; a reader sees the old file or the new one, whole."""
    write_atomic(run_dir / CURRENT, json.dumps(served.to_json(), indent=2))


def read_current(run_dir: Path) -> Served | None:
    """Return what the run serves, or None when nothing was published yet.

    Raises:
        LsatError: when the file is broken.
    """
    path = run_dir / CURRENT
    try:
        served = Served.from_json(json.loads(path.read_text()))
        if not all(isinstance(digest, str) for model in served.all_models for digest in model.adapters):
            raise TypeError("an adapter is not a name")
        return served
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise LsatError(f"{path}: broken ({error}); delete it and the backbone is served without adapters") from error


def published(run_dir: Path) -> Served:
    """Return what the run serves.

    Raises:
        LsatError: when nothing was published.
    """
    current = read_current(Path(run_dir))
    if current is None:
        raise LsatError(f"{run_dir}: nothing was published; publish a model first (a study publishes none)")
    return current


def succeeding(run_dir: Path, models: Sequence[Model], version: int) -> Served:
    """Return these models, with the candidate that is on trial: a trial goes on over a period's end."""
    current = read_current(run_dir)
    trial = (current.candidate, current.share) if current else (None, 0.0)
    return Served(version, tuple(models), *trial)


def commit(run_dir: Path, following: Served) -> None:
    """Replace `current.json`, which is the moment of a change, and note it in the run's past."""
    write_current(run_dir, following)
    number = max((int(p.name) for p in (run_dir / PAST).glob("[0-9]*")), default=0) + 1
    write_current(run_dir / PAST / str(number), following)


def past(run_dir: Path) -> list[Served]:
    """Return everything that was served, oldest first."""
    folders = sorted((Path(run_dir) / PAST).glob("[0-9]*"), key=lambda p: int(p.name))
    return [served for folder in folders if (served := read_current(folder)) is not None]


def earlier(run_dir: Path, period: int) -> Served:
    """Return what was served last with models of a period, without a trial.

    Raises:
        LsatError: naming the periods that can be had.
    """
    history = past(run_dir)
    found = [s for s in history if s.models[0].period == period]
    if not found:
        known = ", ".join(str(p) for p in sorted({s.models[0].period for s in history}))
        raise LsatError(f"roll back: nothing of period {period} was served; there are periods {known}")
    return Served(found[-1].version, found[-1].models)


def heal(run_dir: Path, store: AdapterStore) -> list[str]:
    """Take models with missing or damaged adapters out of `current.json`, and damaged adapters out of the store.

    The models that are left are served as version 0, so that the run publishes its own again; the backbone without
    adapters where none is left. A broken `current.json` is replaced in the same way.

    Returns:
        One line for everything that was mended; none when all is well.
    """
    try:
        current = read_current(run_dir)
    except LsatError as error:
        write_current(run_dir, Served(0, (FROZEN,)))
        return [f"{str(error).partition('; ')[0]}; replaced: the backbone is served without adapters for now"]
    if current is None:
        return []
    broken = [d for d in sorted({d for m in current.all_models for d in m.adapters}) if not store.usable(d)]
    if not broken:
        return []
    lines = [store.quarantine(digest) for digest in broken]
    left = tuple(m for m in current.models if not set(m.adapters) & set(broken))
    write_current(run_dir, Served(0, left or (FROZEN,)))
    return lines
