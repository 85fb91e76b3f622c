"""What every job shares: its options, its console and how it ends on bad input."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError

if TYPE_CHECKING:
    from lsat_ray.runs.backend import Backend

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML of the experiment (default: embedded).")]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the run (default: the config's).")]
RunsOption = Annotated[Path | None, typer.Option("--runs-dir", help="Where runs lie (default: runs).")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")]

console = Console()
_began = time.time()


def runs_dir(given: Path | None) -> Path:
    """Return where runs lie.

    A submitted job works in a copy of the project that goes away with the cluster, so there the default is the home
    folder; on several nodes give a path that all of them see.
    """
    if given:
        return given.expanduser().resolve()
    if "LSAT_RAY_RUNS" in os.environ:
        return Path(os.environ["LSAT_RAY_RUNS"]).expanduser().resolve()
    if "runtime_resources" in str(Path.cwd()):
        return Path.home() / "lsat_ray_runs"
    return Path("runs").resolve()


def backend(config: Experiment) -> Backend:
    """Return what does the work; Ray is imported only where it is asked for."""
    if config.engine.backend == "local":
        from lsat_ray.runs.local import LocalBackend

        return LocalBackend(config)
    from lsat_ray.distributed.cluster import settle

    settle()
    from lsat_ray.distributed.backend import RayBackend

    return RayBackend(config)


def say(text: str) -> None:
    """Print one line of progress with the seconds since the start."""
    console.print(f"[dim]{time.time() - _began:7.1f} s[/dim]  {text}", highlight=False)


@contextmanager
def one_clear_error() -> Iterator[None]:
    """End with one line and exit status 2 where the input is at fault."""
    try:
        yield
    except LsatError as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


def print_table(folder: Path) -> None:
    """Print a finished run's table of mean AUC."""
    from lsat_ray.report import tables
    from lsat_ray.report.folder import RunFolder

    run = RunFolder(folder)
    if run.metrics is not None:
        table = tables.mean_auc(run.metrics, run.scores)
        tables.show(table, console, f"mean AUC over the tested periods of {run.name}")
