"""Change what all replicas of a run serve, in two phases: publish, try a candidate, promote it, roll back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from lsat_ray.distributed.scorer import Report
from lsat_ray.errors import LsatError
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.served import Served, read_current, write_current

PAST = "served"
"""Folder in the run folder with everything that was ever served, by number."""


def publish(
    handle: DeploymentHandle,
    models: Sequence[Model],
    version: int,
    replicas: int,
    run_dir: Path,
    timeout_s: float = 120.0,
) -> None:
    """Change what every replica serves, in two phases, and return when every replica answers with it.

    All replicas load and verify the models beside the current ones; then `current.json` is renamed into place, which is
    the commit; then all replicas flip. A replica that dies and returns meanwhile reads `current.json`. A candidate on
    trial stays on trial.

    Args:
        handle: of the application.
        models: the first answers where no model is named.
        version: of these models; every answer carries it.
        replicas: how many must confirm.
        run_dir: where `current.json` lies.
        timeout_s: seconds for each phase.

    Raises:
        LsatError: when a replica refuses the models (all keep serving the old ones), or does not answer in time.
    """
    current = read_current(Path(run_dir))
    trial = (current.candidate, current.share) if current else (None, 0.0)
    _change(handle, Served(version, tuple(models), *trial), replicas, run_dir, timeout_s)


def shadow(handle: DeploymentHandle, model: Model, replicas: int, run_dir: Path, timeout_s: float = 120.0) -> None:
    """Score live requests with a candidate too, without answering with it; `/metrics` says how far it is off."""
    current = _current(run_dir)
    _change(handle, Served(current.version, current.models, model), replicas, run_dir, timeout_s)


def canary(handle: DeploymentHandle, share: float, replicas: int, run_dir: Path, timeout_s: float = 120.0) -> None:
    """Let the candidate answer a share of the users, always the same ones."""
    current = _current(run_dir, trial=True)
    _change(handle, Served(current.version, current.models, current.candidate, share), replicas, run_dir, timeout_s)


def promote(handle: DeploymentHandle, replicas: int, run_dir: Path, timeout_s: float = 120.0) -> None:
    """Let the candidate answer everybody: it takes the place of the model of its name, else of the first."""
    current = _current(run_dir, trial=True)
    assert current.candidate is not None
    names = [m.strategy for m in current.models]
    place = names.index(current.candidate.strategy) if current.candidate.strategy in names else 0
    models = [*current.models[:place], current.candidate, *current.models[place + 1 :]]
    _change(handle, Served(current.version, tuple(models)), replicas, run_dir, timeout_s)


def withdraw(handle: DeploymentHandle, replicas: int, run_dir: Path, timeout_s: float = 120.0) -> None:
    """End the trial; the models stay."""
    current = _current(run_dir, trial=True)
    _change(handle, Served(current.version, current.models), replicas, run_dir, timeout_s)


def roll_back(handle: DeploymentHandle, period: int, replicas: int, run_dir: Path, timeout_s: float = 120.0) -> Served:
    """Serve again what was served last with models of a period; a trial ends.

    Raises:
        LsatError: naming the periods that can be had.
    """
    history = past(run_dir)
    found = [s for s in history if s.models[0].period == period]
    if not found:
        known = ", ".join(str(p) for p in sorted({s.models[0].period for s in history}))
        raise LsatError(f"roll back: nothing of period {period} was served; there are periods {known}")
    following = Served(found[-1].version, found[-1].models)
    _change(handle, following, replicas, run_dir, timeout_s)
    return following


def past(run_dir: Path) -> list[Served]:
    """Return everything that was served, oldest first."""
    folders = sorted((Path(run_dir) / PAST).glob("[0-9]*"), key=lambda p: int(p.name))
    return [served for folder in folders if (served := read_current(folder)) is not None]


def states(handle: DeploymentHandle, timeout_s: float = 10.0) -> list[Report]:
    """Return what each live replica serves."""
    return _ask_all(handle, "state", (), timeout_s)


def _current(run_dir: Path, trial: bool = False) -> Served:
    """Return what is served; with `trial` there must be a candidate."""
    current = read_current(Path(run_dir))
    if current is None:
        raise LsatError(f"{run_dir}: nothing was published; publish a model first")
    if trial and current.candidate is None:
        raise LsatError("no model is on trial; put one into the shadow first")
    return current


def _change(handle: DeploymentHandle, following: Served, replicas: int, run_dir: Path, timeout_s: float) -> None:
    """Prepare everywhere, commit by `current.json`, flip everywhere, and note it in the run's past."""
    run_dir = Path(run_dir)

    def is_prepared(report: Report) -> bool:
        return following.digest in (report.prepared, report.serving)

    def is_serving(report: Report) -> bool:
        return report.serving == following.digest

    _everywhere(handle, "prepare", (following.to_json(),), is_prepared, replicas, timeout_s)
    write_current(run_dir, following)
    number = max((int(p.name) for p in (run_dir / PAST).glob("[0-9]*")), default=0) + 1
    write_current(run_dir / PAST / str(number), following)
    _everywhere(handle, "commit", (following.digest,), is_serving, replicas, timeout_s)
    _everywhere(handle, "state", (), is_serving, replicas, timeout_s)


def _everywhere(
    handle: DeploymentHandle,
    method: str,
    args: tuple[Any, ...],
    done: Callable[[Report], bool],
    replicas: int,
    timeout_s: float,
) -> None:
    """Call an idempotent method on every replica until `replicas` of them are done.

    Raises:
        LsatError: at the first refusal, or when time is up.
    """
    deadline = time.monotonic() + timeout_s
    what = "no replica answered"
    while True:
        try:
            reports = _ask_all(handle, method, args, max(0.1, deadline - time.monotonic()))
        except (RayError, RayServeException, TimeoutError) as error:  # a replica died; its successor will answer
            reports, what = [], f"{type(error).__name__}: {first_lines(error)}"
        for report in reports:
            if report.error and method == "prepare":  # past the commit there is no way back: try until time is up
                raise LsatError(f"publish: replica {report.replica} refused: {report.error}")
        if reports and all(map(done, reports)) and len(reports) >= replicas:
            return
        if reports:
            errors = sorted({r.error for r in reports if r.error})
            what = "; ".join([f"{sum(map(done, reports))} of {replicas} replicas are done", *errors])
        if time.monotonic() > deadline:
            raise LsatError(f"publish: {method} took longer than {timeout_s:g} s ({what}); look at `serve status`")
        time.sleep(0.1)


def _ask_all(handle: DeploymentHandle, method: str, args: tuple[Any, ...], timeout_s: float) -> list[Report]:
    if not hasattr(handle, "broadcast"):
        raise LsatError(f"ray {ray.__version__} cannot reach all replicas; install ray>=2.60")
    return list(handle.broadcast(method, *args).results(timeout_s=timeout_s))


def first_lines(error: BaseException | str) -> str:
    return " ".join(str(error).split())[:300]
