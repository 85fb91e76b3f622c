"""What is served: a version, its models, and the small file from which a restarted replica learns them."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsat_ray.errors import LsatError
from lsat_ray.scoring.recommender import Model

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
    """Replace the run's `current.json` by rename, so that a reader sees the old or the new one, whole."""
    run_dir.mkdir(parents=True, exist_ok=True)
    draft = run_dir / f".{CURRENT}.{uuid.uuid4().hex}"
    with draft.open("w") as file:
        json.dump({"version": served.version, "models": [m.to_json() for m in served.models]}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, run_dir / CURRENT)


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
