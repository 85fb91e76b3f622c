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
from lsat_ray.scoring.served import Served, commit, earlier, published, succeeding


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
    _change(handle, succeeding(Path(run_dir), models, version), replicas, run_dir, timeout_s)


def shadow(handle: DeploymentHandle, model: Model, replicas: int, run_dir: Path, timeout_s: float = 120.0) -> None:
    """Score live requests with a candidate too, without answering with it; `/metrics` says how far it is off."""
    _change(handle, published(run_dir).shadowing(model), replicas, run_dir, timeout_s)


def canary(handle: DeploymentHandle, share: float, replicas: int, run_dir: Path, timeout_s: float = 120.0) -> None:
    """Let the candidate answer a share of the users, always the same ones."""
    _change(handle, published(run_dir).trying(share), replicas, run_dir, timeout_s)


def promote(handle: DeploymentHandle, replicas: int, run_dir: Path, timeout_s: float = 120.0) -> None:
    """Let the candidate answer everybody who names no model; see `Served.promoted`."""
    _change(handle, published(run_dir).promoted(), replicas, run_dir, timeout_s)


def withdraw(handle: DeploymentHandle, replicas: int, run_dir: Path, timeout_s: float = 120.0) -> None:
    """End the trial; the models stay."""
    _change(handle, published(run_dir).withdrawn(), replicas, run_dir, timeout_s)


def roll_back(handle: DeploymentHandle, period: int, replicas: int, run_dir: Path, timeout_s: float = 120.0) -> Served:
    """Serve again what was served last with models of a period; a trial ends.

    Raises:
        LsatError: naming the periods that can be had.
    """
    following = earlier(run_dir, period)
    _change(handle, following, replicas, run_dir, timeout_s)
    return following


def states(handle: DeploymentHandle, timeout_s: float = 10.0) -> list[Report]:
    """Return what each live replica serves."""
    return _ask_all(handle, "state", (), timeout_s)


def adopt(handle: DeploymentHandle, current: Served, replicas: int, timeout_s: float = 120.0) -> None:
    """Let every replica serve what `current.json` says since another process replaced it: prepare all, then flip all.

    Raises:
        LsatError: when a replica refuses the models (all keep serving the old ones), or does not answer in time.
    """
    _prepare(handle, current, replicas, timeout_s)
    _flip(handle, current, replicas, timeout_s)


def _change(handle: DeploymentHandle, following: Served, replicas: int, run_dir: Path, timeout_s: float) -> None:
    """Prepare everywhere, commit by `current.json`, flip everywhere, and note it in the run's past."""
    _prepare(handle, following, replicas, timeout_s)
    commit(Path(run_dir), following)
    _flip(handle, following, replicas, timeout_s)


def _prepare(handle: DeploymentHandle, following: Served, replicas: int, timeout_s: float) -> None:
    def is_prepared(report: Report) -> bool:
        return following.digest in (report.prepared, report.serving)

    _everywhere(handle, "prepare", (following.to_json(),), is_prepared, replicas, timeout_s)


def _flip(handle: DeploymentHandle, following: Served, replicas: int, timeout_s: float) -> None:
    def is_serving(report: Report) -> bool:
        return report.serving == following.digest

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
