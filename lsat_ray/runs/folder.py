"""A run's folder: names are functions of the config, so the same command finds its own."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import IO, Any

import pandas as pd
import yaml

from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError

FREE = ("engine", "serve", "name", "study", "seeds", "strategies")
"""Sections that may change between the attempts of one run: they decide where, how fast and how many rows, not what
a row is."""


class RunDir:
    """Folder of one run, locked while a process works in it."""

    def __init__(self, root: Path, config: Experiment) -> None:
        self.path = Path(root).resolve() / config.name
        self.config = config
        self.adapters = self.path / "adapters"
        self.search = self.path / "search"
        self._lock: IO[str] | None = None

    def open(self) -> None:
        """Create the folder, or check that it is this config's; then lock it.

        Raises:
            LsatError: when it holds another config or another process is at work in it.
        """
        resolved = self.path / "config.resolved.yaml"
        if resolved.exists():
            before, now = yaml.safe_load(resolved.read_text()), yaml.safe_load(self.config.to_yaml())
            odd = [k for k in now if k not in FREE and before.get(k) != now[k]]
            if odd:
                raise LsatError(
                    f"{self.path}: holds a run whose `{odd[0]}` differs from this config's; "
                    "give another --name, or delete the folder"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LsatError(f"{self.path}: another process works here; wait for it or give another --name") from error
        write_atomically(resolved, self.config.to_yaml())
        write_atomically(self.path / "versions.json", json.dumps(versions(), indent=2, sort_keys=True))

    def scores(self, strategy: str, seed: int, period: int) -> Path:
        """Return the file of a strategy's scores on a tested period."""
        return self.path / "scores" / strategy / f"seed{seed}" / f"period{period:02d}.parquet"

    def close(self) -> None:
        """Release the lock."""
        if self._lock:
            self._lock.close()
            self._lock = None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    names = ("ray", "torch", "transformers", "peft", "deepspeed", "numpy", "pandas", "scikit-learn", "lsat_ray")
    out = {"python": platform.python_version(), "machine": platform.machine(), "cores": str(os.cpu_count())}
    for name in names:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "absent"
    return out


def write_atomically(path: Path, content: str | pd.DataFrame) -> None:
    """Write text or a table (Parquet) beside its place and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    if isinstance(content, str):
        draft.write_text(content)
    else:
        content.to_parquet(draft, index=False)
    os.replace(draft, path)


def read_json(path: Path) -> Any:
    """Return the JSON of a file, or None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None
