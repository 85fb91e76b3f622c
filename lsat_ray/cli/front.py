"""The front door: what the command line does, as functions that a notebook can call."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lsat_ray import config as configs
from lsat_ray.cli.machine import this_machine
from lsat_ray.cli.placement import problem
from lsat_ray.cli.plugins import load_plugins
from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError

if TYPE_CHECKING:
    import pandas as pd

Say = Callable[[str], None]
Source = Experiment | str | Path | None
"""An experiment, the YAML file of one, or None for the embedded default."""
Steps = dict[str, tuple[Any, list[str]]]
"""By name of a value: the value, and the overrides that go with it."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = (), name: str | None = None) -> Experiment:
    """Read one experiment; the same as `lsat_ray.config.load`."""
    return configs.load(path, tuple(overrides), name)


def runs_folder(given: str | Path | None = None) -> Path:
    """Return the folder in which runs lie.

    A submitted job works in a copy of the project that goes away with the cluster, so there the default is the home
    folder; on several nodes give a path that all of them see.

    Raises:
        LsatError: when an address such as `s3://...` is given.
    """
    given = given or os.environ.get("LSAT_RAY_RUNS")
    if given is None:
        submitted = "runtime_resources" in str(Path.cwd())
        return Path.home() / "lsat_ray_runs" if submitted else Path("runs").resolve()
    if "://" in str(given):
        raise LsatError(
            f"--runs-dir {given}: runs lie in a folder, not behind an address; mount the bucket on every node "
            "(or use a shared file system) and give its path"
        )
    return Path(given).expanduser().resolve()


def validate(source: Source = None, say: Say = print) -> str:
    """Check a config and its log; nothing is written and no GPU is needed.

    Returns:
        One line about what was read.

    Raises:
        LsatError: naming file, row or key and the remedy.
    """
    from lsat_ray.cli import bridge

    load_plugins()
    return _told(bridge.check(_experiment(source)), say)


def replay(source: Source = None, runs_dir: str | Path | None = None, say: Say = print) -> Path:
    """Replay the stream of an experiment, test-then-train, and return the run's folder.

    A run that has ended is returned at once; one that was stopped goes on.

    Raises:
        LsatError: on bad input, before anything is written or started.
    """
    from lsat_ray.cli import bridge

    return _run(bridge.replay, _experiment(source), runs_folder(runs_dir), say, endpoint=True)


def study(source: Source = None, runs_dir: str | Path | None = None, say: Say = print) -> Path:
    """Compare the strategies of an experiment on its finished log (back-fill) and return the run's folder.

    Raises:
        LsatError: on bad input, before anything is written or started.
    """
    from lsat_ray.cli import bridge

    return _run(bridge.study, _experiment(source), runs_folder(runs_dir), say, endpoint=False)


def sweep(
    vary: Sequence[str],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    name: str | None = None,
    runs_dir: str | Path | None = None,
    against: Sequence[str] = (),
    say: Say = print,
) -> tuple[pd.DataFrame, Path]:
    """Run a study for every value of a setting and set the results side by side.

    Args:
        vary: `section.key=[value, ...]`; several change together, value by value.
        path: YAML of the experiment.
        overrides: `section.key=value` pairs for all studies.
        name: of the folder that holds the studies.
        runs_dir: where that folder lies.
        against: rows that the others are compared with (full retraining when empty).
        say: hears a line per step.

    Returns:
        The table, and the folder with table, figures and one run per value.

    Raises:
        LsatError: on bad input, before the first study starts.
    """
    from lsat_ray.cli import bridge
    from lsat_ray.report import sweep as tables
    from lsat_ray.report.folder import RunFolder

    say("reading the log")
    load_plugins()
    key, steps = parse(vary)
    tables.check([value for value, _ in steps.values()], list(against))
    folder = runs_folder(runs_dir) / configs.load(path, tuple(overrides), name).name
    experiments = {
        label: configs.load(path, [*overrides, *more], f"{key}-{label}") for label, (_, more) in steps.items()
    }
    done = _finished(experiments, folder)
    if todo := {label: e for label, e in experiments.items() if label not in done}:
        checked = {label: bridge.check(experiment) for label, experiment in todo.items()}
        for label, experiment in todo.items():
            _told(checked[label], partial(_labelled, say, label))
            _placeable(experiment, endpoint=False)
        for label, experiment in todo.items():
            told = partial(_labelled, say, label)
            with open_backend(experiment) as backend:
                done[label] = bridge.study(experiment, folder, backend, told, checked[label])
    table = tables.table(
        {steps[label][0]: RunFolder(done[label]) for label in steps}, list(against or ["full-retraining"])
    )
    tables.write(table, key, folder)
    return table, folder


def open_backend(config: Experiment) -> AbstractContextManager[Any]:
    """Return the backend of `engine.backend` as a context manager; Ray is imported only when it is asked for."""
    from lsat_ray.cli import bridge

    return bridge.backend(config)


def parse(vary: Sequence[str]) -> tuple[str, Steps]:
    """Return the first setting of a sweep, and by a name of each of its values that value and its overrides.

    Raises:
        LsatError: when one is not `section.key=[value, ...]`, or they are not equally long.
    """
    columns: list[tuple[str, list[Any]]] = []
    for text in vary:
        key, equals, values = text.partition("=")
        try:
            found = yaml.safe_load(values)
        except yaml.YAMLError:
            found = None
        if not equals or not isinstance(found, list) or not found:
            raise LsatError(f"--vary {text}: expected section.key=[value, value], as in --vary lora.rank=[2, 8]")
        columns.append((key.strip(), found))
    if not columns:
        raise LsatError("--vary: missing; name a setting, as in --vary lora.rank=[2, 8]")
    if len({len(values) for _, values in columns}) > 1:
        raise LsatError(f"--vary {' '.join(vary)}: settings that change together need equally many values")
    steps: Steps = {}
    for at, value in enumerate(columns[0][1]):
        name = ".".join(map(str, value)) if isinstance(value, list) else str(value)
        overrides = [f"{key}={json.dumps(values[at])}" for key, values in columns]
        steps[name] = (value if isinstance(value, int | float) else name, overrides)
    return columns[0][0], steps


def _run(run: Callable[..., Path], config: Experiment, folder: Path, say: Say, endpoint: bool) -> Path:
    """Check, open the backend and run, unless the run has ended already."""
    say(f"run {config.name} in {folder / config.name}")  # what follows imports torch
    from lsat_ray.cli import bridge

    if done := bridge.finished(config, folder):
        say("nothing left to do")
        return done
    load_plugins()
    checked = bridge.check(config)
    _told(checked, say)
    _placeable(config, endpoint)
    with open_backend(config) as backend:
        return run(config, folder, backend, say, checked)


def _told(checked: Any, say: Say) -> str:
    """Say what was read and what looks wrong in it; return the first line."""
    line = str(checked.summary.line())
    say(line)
    for warning in checked.summary.warnings:
        say(f"warning: {warning}")
    return line


def _experiment(source: Source) -> Experiment:
    return source if isinstance(source, Experiment) else configs.load(source)


def _finished(experiments: Mapping[str, Experiment], folder: Path) -> dict[str, Path]:
    from lsat_ray.cli import bridge

    found = {label: bridge.finished(e, folder) for label, e in experiments.items()}
    return {label: path for label, path in found.items() if path}


def _placeable(config: Experiment, endpoint: bool) -> None:
    """Refuse what this machine can never place; a cluster that is joined has its own say."""
    if getattr(config.engine, "backend", "ray") == "local" or "RAY_ADDRESS" in os.environ:
        return
    if line := problem(config, [this_machine()], endpoint):
        raise LsatError(line)


def _labelled(say: Say, label: str, text: str) -> None:
    say(f"{label}: {text}")
