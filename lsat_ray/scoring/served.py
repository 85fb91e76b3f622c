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

FROZEN = Model("frozen", 0, "frozen")
"""What is served before the first publish: the backbone without adapters."""


@dataclass(frozen=True)
class Served:
    """Models that are served together; they change together or not at all."""

    version: int
    models: tuple[Model, ...]
    """The first is the one that answers where no strategy is named."""

    def __post_init__(self) -> None:
        if not self.models:
            raise LsatError("publish: no models; name at least one")
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
        """SHA-256 of version and models."""
        parts = json.dumps([self.version, [m.digest for m in self.models]])
        return hashlib.sha256(parts.encode()).hexdigest()

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

    @staticmethod
    def from_json(models: Sequence[dict[str, Any]], version: int) -> Served:
        """Read models as `Model.to_json` wrote them."""
        return Served(version, tuple(Model.from_json(m) for m in models))


def write_current(run_dir: Path, served: Served) -> None:
    """Replace the run's `current.json` durably; a reader sees the old file or the new one, whole."""
    tree = {"version": served.version, "models": [m.to_json() for m in served.models]}
    write_atomic(run_dir / CURRENT, json.dumps(tree, indent=2))


def read_current(run_dir: Path) -> Served | None:
    """Return what the run serves, or None when nothing was published yet.

    Raises:
        LsatError: when the file is broken.
    """
    path = run_dir / CURRENT
    try:
        tree = json.loads(path.read_text())
        return Served.from_json(tree["models"], int(tree["version"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LsatError(f"{path}: broken ({error}); delete it and the backbone is served without adapters") from error


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
    broken = [d for d in sorted({d for m in current.models for d in m.adapters}) if not store.usable(d)]
    if not broken:
        return []
    lines = [store.quarantine(digest) for digest in broken]
    left = tuple(m for m in current.models if not set(m.adapters) & set(broken))
    write_current(run_dir, Served(0, left or (FROZEN,)))
    return lines
