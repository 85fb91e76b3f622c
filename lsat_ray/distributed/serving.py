"""Serve from the driver's side: start the application, publish models to all replicas, stop."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone.load import locate
from lsat_ray.config import Experiment, load
from lsat_ray.distributed.scorer import Bulk, Report, Scorer, Setup
from lsat_ray.errors import LsatError
from lsat_ray.scoring.recommender import Model
from lsat_ray.scoring.served import CURRENT, FROZEN, Served, read_current, write_current

APP = "lsat_ray"
"""Name of the Serve application."""
QUEUE = 4096
"""Requests that wait at a proxy before it answers 503."""
QUIET = {"log_level": "WARNING", "enable_access_log": False}
"""Logging of Serve: no line a request."""

__all__ = ["APP", "Bulk", "Report", "application", "publish", "read_current", "start", "stop"]


def start(
    config: Experiment, backbone_folder: Path, titles: Sequence[str], store_root: Path, run_dir: Path
) -> DeploymentHandle:
    """Start the application and return its handle; it serves what the run published last, else the frozen backbone.

    Args:
        config: `serve`, `backbone`, `lora`, `prompt`, `engine.batch_tokens` and `data.history` are read.
        backbone_folder: Hugging Face folder.
        titles: title of every item, for `score_bulk`.
        store_root: folder of the adapter store; like `run_dir` on storage that every replica sees.
        run_dir: where `current.json` lies.

    Raises:
        LsatError: when the port is taken, the token's variable is not set, or what was published is damaged.
    """
    _check_current(Path(run_dir), AdapterStore(Path(store_root)))
    app = _bind(config, Path(backbone_folder), titles, Path(store_root), Path(run_dir))
    _claim(config.serve.host, config.serve.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": config.serve.host, "port": config.serve.port}, logging_config=QUIET)
    try:
        return serve.run(app, name=APP, route_prefix="/")
    except RuntimeError as error:
        raise LsatError(
            f"serve: the application did not start: {_first_lines(error)}; see the replica's log"
        ) from error


def stop() -> None:
    """End the application and Serve itself."""
    serve.shutdown()


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
    the commit; then all replicas flip. A replica that dies and returns meanwhile reads `current.json`.

    Args:
        handle: of the application.
        models: the first answers where no strategy is named.
        version: of these models; every answer carries it.
        replicas: how many must confirm.
        run_dir: where `current.json` lies.
        timeout_s: seconds for each phase.

    Raises:
        LsatError: when a replica refuses the models (all keep serving the old ones), or does not answer in time.
    """
    following = Served(version, tuple(models))
    tree = [m.to_json() for m in models]

    def is_prepared(report: Report) -> bool:
        return following.digest in (report.prepared, report.serving)

    def is_serving(report: Report) -> bool:
        return report.serving == following.digest

    _everywhere(handle, "prepare", (tree, version), is_prepared, replicas, timeout_s)
    write_current(Path(run_dir), following)
    _everywhere(handle, "commit", (version,), is_serving, replicas, timeout_s)
    _everywhere(handle, "state", (), is_serving, replicas, timeout_s)


def states(handle: DeploymentHandle, timeout_s: float = 10.0) -> list[Report]:
    """Return what each live replica serves."""
    return _ask_all(handle, "state", (), timeout_s)


def application(args: dict[str, str]) -> Any:
    """Build the application for a Serve config file (`import_path: lsat_ray.distributed.serving:application`).

    Args:
        args: `run_dir`, with `config.resolved.yaml`, `current.json` and `adapters/`; `backbone`, a model folder, when
            it is not the config's `backbone.path`.
    """
    run_dir = Path(args["run_dir"])
    config = load(run_dir / "config.resolved.yaml")
    folder = Path(args["backbone"]) if "backbone" in args else locate(config.backbone)
    return _bind(config, folder, (), run_dir / "adapters", run_dir)


def _bind(config: Experiment, folder: Path, titles: Sequence[str], store_root: Path, run_dir: Path) -> Any:
    """Return the application with its options."""
    setup = Setup(
        backbone_folder=str(folder),
        backbone=config.backbone,
        lora=config.lora,
        prompt=config.prompt,
        titles=tuple(titles),
        store_root=str(store_root.absolute()),
        run_dir=str(run_dir.absolute()),
        history=config.data.history,
        batch_tokens=config.engine.batch_tokens,
        threads=config.serve.threads,
        max_batch=config.serve.max_batch,
        batch_wait_s=config.serve.batch_wait_s,
        token_sha256=_token(config.serve.token_env),
    )
    deployment = serve.deployment(
        serve.ingress()(Scorer),
        name="Scorer",
        num_replicas=config.serve.replicas,
        max_ongoing_requests=max(256, 4 * config.serve.max_batch),
        max_queued_requests=QUEUE,
        ray_actor_options={"num_cpus": config.serve.cpus, "num_gpus": config.serve.gpus},
        graceful_shutdown_timeout_s=10,
        health_check_period_s=5,
        max_constructor_retry_count=3,
        logging_config=QUIET,
    )
    return deployment.bind(setup)


def _token(variable: str | None) -> str | None:
    """Return the SHA-256 of the bearer token, hex."""
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise LsatError(f"serve.token_env: {variable} is not set; export it, or set serve.token_env to null")
    return hashlib.sha256(token.encode()).hexdigest()


def _claim(host: str, port: int) -> None:
    """Check that the port is free, unless it is the running Serve's own."""
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        running = True
    except ValueError:
        running = False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            taken = False
        except OSError as error:
            taken, reason = True, error.strerror
    if taken and not running:
        raise LsatError(
            f"serve.port: {host}:{port} cannot be had ({reason}); choose another with --set serve.port=8001, or "
            "end the program that listens there"
        )
    if running and not taken:
        raise LsatError(
            f"serve.port: Serve runs on this cluster already, and not on {host}:{port}; give its port, or end it with "
            "`serve shutdown`"
        )


def _check_current(run_dir: Path, store: AdapterStore) -> None:
    """Verify what was published last, here and once, rather than in a replica that is restarted in vain."""
    current = read_current(run_dir)
    if current is None:
        write_current(run_dir, Served(0, (FROZEN,)))
        return
    for digest in sorted({d for model in current.models for d in model.adapters}):
        try:
            store.load(digest)
        except LsatError as error:
            path = run_dir / CURRENT
            raise LsatError(f"{error}; delete {path} too, and the backbone is served without adapters") from error


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
            reports, what = [], f"{type(error).__name__}: {_first_lines(error)}"
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


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
