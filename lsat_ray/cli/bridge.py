"""The pipeline of `runs/` where it is there, today's classes where not; goes once `runs.replay` and the rest exist."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lsat_ray.config import Experiment

if TYPE_CHECKING:
    from lsat_ray.data.periods import Periods


@dataclass(frozen=True)
class Summary:
    """What was read."""

    periods: Periods

    def line(self) -> str:
        """Return users, items, samples, like share, dates and warm-up rows as one line."""
        s, first = self.periods.samples, self.periods.borders[0]
        start, end = (datetime.fromtimestamp(int(t), UTC).date() for t in (s.timestamp[0], s.timestamp[-1]))
        users, items = len(set(s.user.tolist())), len(set(s.item.tolist()))
        rows = self.periods.borders[-1] - first
        return (
            f"{len(s)} samples of {users} users on {items} items, {start} to {end}, {s.label.mean():.1%} likes; "
            f"{self.periods.count} periods with {rows} samples after {first} of warm-up"
        )


@dataclass(frozen=True)
class Checked:
    """A log that was read and cut."""

    periods: Periods
    summary: Summary


def _new(name: str) -> ModuleType | None:
    """Return a module of the new pipeline, or None while it is not there."""
    full = f"lsat_ray.{name}"
    return importlib.import_module(full) if importlib.util.find_spec(full) else None


def check(config: Experiment) -> Any:
    """Read the log and cut it; nothing is written."""
    if module := _new("runs.check"):
        return module.check(config)
    from lsat_ray import data
    from lsat_ray.backbone.load import locate
    from lsat_ray.baselines import classical
    from lsat_ray.data.periods import cut
    from lsat_ray.strategies import Setting, make

    periods = cut(data.load(config.data, config.periods), config.data, config.periods)
    llm = tuple(n for n in config.strategies if n != "bookgpt" and n not in classical.rows("", 0))
    make(Setting("", "", config.model_copy(update={"strategies": llm}), 0))
    if config.backbone.path != "nano":
        locate(config.backbone)
    return Checked(periods, Summary(periods))


def finished(config: Experiment, runs_dir: Path) -> Path | None:
    """Return the folder of a run that has nothing left to do."""
    module = _new("runs.check")
    return module.finished(config, runs_dir) if module and hasattr(module, "finished") else None


@contextmanager
def backend(config: Experiment) -> Iterator[Any]:
    """Open the configured backend; Ray is imported only when it is asked for."""
    if getattr(config.engine, "backend", "ray") == "local":
        module = importlib.import_module("lsat_ray.runs.local")
        with module.LocalBackend(config) as local:
            yield local
    elif rim := _new("distributed.backend"):
        with rim.RayBackend(config) as ray_backend:
            yield ray_backend
    else:
        from lsat_ray.distributed.cluster import connect, disconnect

        here = connect()
        try:
            yield None
        finally:
            if here and not config.serve.keep:
                disconnect()


def replay(config: Experiment, runs_dir: Path, opened: Any, say: Any) -> Path:
    """Replay over a backend."""
    if module := _new("runs.replay"):
        return Path(module.replay(config, runs_dir, opened, say))
    from lsat_ray.distributed.controller import Replay

    return Replay(config, runs_dir, say).run()


def study(config: Experiment, runs_dir: Path, opened: Any, say: Any) -> Path:
    """Run a study over a backend."""
    if module := _new("runs.study"):
        return Path(module.study(config, runs_dir, opened, say))
    from lsat_ray.distributed.study import Study

    return Study(config, runs_dir, say).run()
