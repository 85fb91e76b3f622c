"""The front door: what the command line does, as functions that a notebook can call."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lsat_ray import config as configs
from lsat_ray.cli.machine import at_hand
from lsat_ray.cli.placement import problem
from lsat_ray.cli.plugins import load_plugins
from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError

if TYPE_CHECKING:
    from threading import Event

    import pandas as pd

    from lsat_ray.runs.backend import Backend
    from lsat_ray.runs.check import Checked

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
    return _folder(given, "--runs-dir ")


def validate(source: Source = None, say: Say = print) -> str:
    """Check a config and its log; nothing is written and no GPU is needed.

    Returns:
        One line about what was read.

    Raises:
        LsatError: naming file, row or key and the remedy.
    """
    config = _experiment(source)
    load_plugins()
    if config.data.format == "blocks":
        from lsat_ray.runs import blocks

        line = blocks.check(config).line()
        say(line)
        return line
    from lsat_ray.runs.check import check

    return _told(check(config), say)


def replay(source: Source = None, runs_dir: str | Path | None = None, say: Say = print) -> Path:
    """Replay the stream of an experiment, test-then-train, and return the run's folder.

    A run that has ended is returned at once; one that was stopped goes on.

    Raises:
        LsatError: on bad input, before anything is written or started.
    """
    config, folder = _begun(source, runs_dir, say)  # what follows imports torch
    from lsat_ray.runs.replay import replay as run

    return _run(run, config, folder, say, endpoint=True)


def study(source: Source = None, runs_dir: str | Path | None = None, say: Say = print) -> Path:
    """Compare the strategies of an experiment on its finished log (back-fill) and return the run's folder.

    Raises:
        LsatError: on bad input, before anything is written or started.
    """
    config, folder = _begun(source, runs_dir, say)
    if config.data.format == "blocks":
        from lsat_ray.runs import blocks

        config = blocks.one_process(config)
        ready = blocks.check(config)
        _placeable(config, endpoint=False)
        with _one_line(folder / config.name):
            return blocks.study(config, folder, make_backend(config), say, ready)
    from lsat_ray.runs.study import study as run

    return _run(run, config, folder, say, endpoint=False)


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
    say("reading the logs")
    from lsat_ray.report import sweep as tables
    from lsat_ray.report.reader import RunReader
    from lsat_ray.runs.study import study as run

    load_plugins()
    key, steps = parse(vary)
    tables.check([value for value, _ in steps.values()], list(against))
    folder = runs_folder(runs_dir) / configs.load(path, tuple(overrides), name).name
    experiments = {
        label: configs.load(path, [*overrides, *more], f"{key}-{label}") for label, (_, more) in steps.items()
    }
    ready = {label: _checked(e, folder, endpoint=False) for label, e in experiments.items()}
    done = {}
    for label, experiment in experiments.items():
        done[label] = _go(run, experiment, folder, partial(_labelled, say, label), ready[label], endpoint=False)
    noise = max((e.study.noise for e in experiments.values() if e.study.noise is not None), default=None)
    table = tables.table(
        {steps[label][0]: RunReader(done[label]) for label in steps}, list(against or ["full-retraining"]), noise
    )
    tables.write(table, key, folder, noise)
    return table, folder


def serve(
    run: str | Path, overrides: Sequence[str] = (), follow: bool = False, say: Say = print, stop: Event | None = None
) -> None:
    """Serve what a run published, from its folder, until the process is told to end; the same call takes up again.

    Args:
        run: folder of a replay, finished or running.
        overrides: `section.key=value` pairs over the run's own config, such as `serve.port=8001`.
        follow: wait for a run that has not published anything yet.
        say: hears a line per change.
        stop: ends it when set.

    Raises:
        LsatError: when there is nothing to serve, or it cannot be started.
    """
    folder = _folder(run)
    say(f"serving {folder}")
    from lsat_ray.serving import hosting

    if not follow and not (folder / "config.resolved.yaml").is_file():
        raise LsatError(f"{folder}: no run is there (no config.resolved.yaml); give the folder of a replay")
    hosting.await_published(folder, follow, say)
    config = configs.load(folder / "config.resolved.yaml", tuple(overrides))
    if config.engine.backend == "local":
        return hosting.host(config, folder, say, stop)
    from lsat_ray.distributed import hosting as on_ray

    on_ray.host(config, folder, say, stop)


def make_backend(config: Experiment) -> Backend:
    """Return the backend of `engine.backend`; Ray is imported only when it is asked for."""
    if config.engine.backend == "local":
        from lsat_ray.runs.local import LocalBackend

        return LocalBackend(config)
    from lsat_ray.distributed.cluster import settle

    settle()
    from lsat_ray.distributed.backend import RayBackend

    return RayBackend(config)


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


def _folder(given: str | Path, option: str = "") -> Path:
    """Return a folder's path; a bucket's address, whole or as `Path` shortens it, is refused."""
    if re.match(r"[a-z][a-z0-9]+:/", str(given)):
        raise LsatError(
            f"{option}{given}: runs lie in a folder, not behind an address; mount the bucket on every node "
            "(or use a shared file system) and give its path"
        )
    return Path(given).expanduser().resolve()


def _begun(source: Source, runs_dir: str | Path | None, say: Say) -> tuple[Experiment, Path]:
    """Return the experiment and the runs folder, and say so before anything slow is imported."""
    config, folder = _experiment(source), runs_folder(runs_dir)
    say(f"run {config.name} in {folder / config.name}")
    return config, folder


def _run(run: Callable[..., Path], config: Experiment, folder: Path, say: Say, endpoint: bool) -> Path:
    return _go(run, config, folder, say, _checked(config, folder, endpoint), endpoint)


def _checked(config: Experiment, folder: Path, endpoint: bool) -> Checked:
    """Check config, log and run folder, and that the machines at hand can place what the config asks for."""
    from lsat_ray.runs.check import check
    from lsat_ray.runs.folder import RunFolder

    load_plugins()
    RunFolder(folder, config).check()
    checked = check(config)
    _placeable(config, endpoint)
    return checked


def _go(run: Callable[..., Path], config: Experiment, folder: Path, say: Say, checked: Checked, endpoint: bool) -> Path:
    """Run what was checked, unless the run has ended already."""
    from lsat_ray.runs.finished import finished

    if done := finished(checked, folder, "replay" if endpoint else "study"):
        say("nothing left to do")
        return done
    with _one_line(folder / config.name):
        return run(config, folder, make_backend(config), say, checked)


@contextmanager
def _one_line(run: Path) -> Iterator[None]:
    """Turn an error of Ray's that nobody foresaw into one line; the traceback goes to a log in the run's folder."""
    try:
        yield
    except LsatError:
        raise
    except Exception as error:
        if not type(error).__module__.startswith("ray."):
            raise
        from lsat_ray.distributed.training import note

        log, cause = run / "train" / "driver.log", getattr(error, "cause", None) or error
        note(log, "the driver", error)
        words = f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
        raise LsatError(f"ray: {words}; see {log}; the same command goes on") from error


def _told(checked: Checked, say: Say) -> str:
    """Say what was read and what looks wrong in it; return the first line."""
    line = checked.summary.line()
    say(line)
    for warning in checked.summary.warnings:
        say(f"warning: {warning}")
    return line


def _experiment(source: Source) -> Experiment:
    return source if isinstance(source, Experiment) else configs.load(source)


def _placeable(config: Experiment, endpoint: bool) -> None:
    """Refuse what this machine, or the cluster that is joined, can never place; one that autoscales is asked too."""
    if config.engine.backend == "local":
        return
    nodes, where = at_hand()
    if line := problem(config, nodes, endpoint):
        raise LsatError(f"{where}: {line}")


def _labelled(say: Say, label: str, text: str) -> None:
    say(f"{label}: {text}")
