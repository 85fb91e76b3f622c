"""The pipeline of `runs/` where it is there, today's classes where not; goes once `runs.replay` and the rest exist."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
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

    warnings: tuple[str, ...] = ()

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
    data, periods_of, strategies = (
        importlib.import_module(f"lsat_ray.{m}") for m in ("data", "data.periods", "strategies")
    )
    rivals = importlib.import_module("lsat_ray.baselines.classical").rows("", 0)
    periods = periods_of.cut(data.load(config.data, config.periods), config.data, config.periods)
    llm = tuple(n for n in config.strategies if n != "bookgpt" and n not in rivals)
    strategies.make(strategies.Setting("", "", config.model_copy(update={"strategies": llm}), 0))
    if config.backbone.path != "nano":
        importlib.import_module("lsat_ray.backbone.load").locate(config.backbone)
    return Checked(periods, Summary(periods))


def finished(config: Experiment, runs_dir: Path) -> Path | None:
    """Return the folder of a run that has nothing left to do."""
    module = _new("runs.check")
    return module.finished(config, runs_dir) if module and hasattr(module, "finished") else None


@contextmanager
def backend(config: Experiment) -> Iterator[Any]:
    """Give the configured backend; Ray is imported only when it is asked for."""
    if getattr(config.engine, "backend", "ray") == "local":
        yield from _entered(importlib.import_module("lsat_ray.runs.local").LocalBackend(config))
        return
    from lsat_ray.distributed.cluster import connect, disconnect, settle

    settle()
    if rim := _new("distributed.backend"):
        yield from _entered(rim.RayBackend(config))
        return
    here = connect()
    try:
        yield None
    finally:
        if here and not config.serve.keep:
            disconnect()


def _entered(made: Any) -> Iterator[Any]:
    """Give a backend, entered where it is a context manager."""
    if hasattr(made, "__enter__"):
        with made as entered:
            yield entered
    else:
        yield made


def replay(config: Experiment, runs_dir: Path, opened: Any, say: Any, checked: Any = None) -> Path:
    """Replay over a backend."""
    if module := _new("runs.replay"):
        return _call(module.replay, config, runs_dir, opened, say, checked)
    return importlib.import_module("lsat_ray.distributed.controller").Replay(config, runs_dir, say).run()  # type: ignore[no-any-return]


def study(config: Experiment, runs_dir: Path, opened: Any, say: Any, checked: Any = None) -> Path:
    """Run a study over a backend."""
    if module := _new("runs.study"):
        return _call(module.study, config, runs_dir, opened, say, checked)
    return importlib.import_module("lsat_ray.distributed.study").Study(config, runs_dir, say).run()  # type: ignore[no-any-return]


def fetch(log: str, folder: Path) -> Path:
    """Download a public log."""
    module = _new("data.fetch") or importlib.import_module("lsat_ray.data.download")
    return Path(module.fetch(log, folder))


def _call(run: Any, config: Experiment, runs_dir: Path, opened: Any, say: Any, checked: Any) -> Path:
    """Hand over what was checked where the pipeline takes it, so that the log is read once."""
    takes = "checked" in inspect.signature(run).parameters
    return Path(run(config, runs_dir, opened, say, *([checked] if takes else [])))
