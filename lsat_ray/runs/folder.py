"""A run's folder: its place follows from the config alone, so the same command finds its own results."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path
from typing import IO, Any

import yaml
from pydantic import ValidationError

from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError
from lsat_ray.files import make_folder, write_atomic

FREE = ("engine", "serve", "name", "study", "seeds", "strategies")
"""Sections that may change between two attempts of one run: they decide where and how fast results are computed and
which rows the table has, but no row's figures."""
RESOLVED = "config.resolved.yaml"
"""File with every key of the config; the first that a run writes."""
LOCK = ".lock"
"""File that a process holds as long as it works in the folder."""


class RunFolder:
    """Folder of one run, locked while a process works in it."""

    def __init__(self, root: Path, config: Experiment) -> None:
        self.root = Path(root)
        self.path = self.root.resolve() / config.name
        self.config = config
        self.adapters = self.path / "adapters"
        self.search = self.path / "search"
        self._lock: IO[str] | None = None

    @property
    def begun(self) -> bool:
        """Whether a process has worked in it before."""
        return (self.path / RESOLVED).exists()

    def check(self) -> None:
        """Check that the folder can be written and holds no other config's run; nothing is created.

        Raises:
            LsatError: when the runs folder is an address or cannot be written, holds another config's run, or another
                process is at work in it.
        """
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(self.root)):
            raise LsatError(f"--runs-dir {self.root}: an address; give a folder, results are written to files")
        above = self.path
        try:
            while not above.exists():
                above = above.parent
            with tempfile.TemporaryFile(dir=above):
                pass
        except OSError as error:
            raise LsatError(
                f"{self.path}: cannot be written ({above}: {error.strerror}); give another --runs-dir"
            ) from error
        if not self.begun:
            return
        now = yaml.safe_load(self.config.to_yaml())
        before = _with_defaults(yaml.safe_load((self.path / RESOLVED).read_text()))
        odd = [k for k in now if k not in FREE and before.get(k) != now[k]]
        if odd:
            raise LsatError(
                f"{self.path}: holds a run whose `{odd[0]}` differs from this config's; "
                "give another --name, or delete the folder"
            )
        if (lock := self.path / LOCK).exists():
            with lock.open() as probe:
                self._hold(probe, fcntl.LOCK_SH)

    def open(self) -> None:
        """Check the folder, create it, lock it, and write the config and the versions into it.

        Raises:
            LsatError: see `check`.
        """
        self.check()
        make_folder(self.path)
        self._lock = (self.path / LOCK).open("w")
        self._hold(self._lock, fcntl.LOCK_EX)
        write_atomic(self.path / RESOLVED, self.config.to_yaml())
        write_atomic(self.path / "versions.json", json.dumps(versions(), indent=2, sort_keys=True))

    def _hold(self, lock: IO[str], how: int) -> None:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except OSError as error:
            raise LsatError(f"{self.path}: another process works here; wait for it or give another --name") from error

    def scores(self, strategy: str, seed: int, period: int) -> Path:
        """Return the file of a strategy's scores on a tested period."""
        return self.path / "scores" / strategy / f"seed{seed}" / f"period{period:02d}.parquet"

    def close(self) -> None:
        """Release the lock."""
        if self._lock:
            self._lock.close()
            self._lock = None


def _with_defaults(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved config with the keys that came since at their defaults: a newer version resumes older runs.

    Where a default is not what was done before its key came, what was done stands.
    """
    tree = {**tree, "search": {"select": "auc", **tree.get("search", {})}}
    try:
        return yaml.safe_load(Experiment.model_validate(tree).to_yaml())  # type: ignore[no-any-return]
    except ValidationError:  # a key is gone, or means something else
        return tree


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on, and the commit of a checkout."""
    names = ("ray", "torch", "transformers", "peft", "deepspeed", "numpy", "pandas", "scikit-learn", "lsat_ray")
    out = {"python": platform.python_version(), "machine": platform.machine(), "cores": str(os.cpu_count())}
    for name in names:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "absent"
    if (commit := _commit()) is not None:
        out["commit"] = commit
    return out


def _commit() -> str | None:
    """Return the commit of the checkout that this code runs from, `+changes` where files differ; None elsewhere."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "lsat_ray", "benchmarks", "jobs")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
