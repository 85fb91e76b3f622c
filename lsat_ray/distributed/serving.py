"""Serve from the driver's side: start the application of a run, change what all its replicas serve, stop it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone.load import locate
from lsat_ray.config import Experiment, load
from lsat_ray.distributed.publish import (
    adopt,
    canary,
    first_lines,
    promote,
    publish,
    roll_back,
    shadow,
    states,
    withdraw,
)
from lsat_ray.distributed.scorer import Scorer
from lsat_ray.errors import LsatError
from lsat_ray.scoring.served import CURRENT, FROZEN, Served, past, read_current, write_current
from lsat_ray.serving import catalogue
from lsat_ray.serving.desk import Bulk
from lsat_ray.serving.setup import PREDECESSOR_S, Setup, backbone_of, check_open, check_port, taken
from lsat_ray.training import memory

STOP_S = 70.0
"""Seconds that Serve's controller has to answer; it gives up a deletion after 60."""
STARTS = 3
"""Times that Serve is started whose proxy dies meanwhile."""
QUIET = {"log_level": "WARNING", "enable_access_log": False}
"""Logging of Serve: no line per request."""

__all__ = [
    "adopt",
    "application",
    "canary",
    "check",
    "past",
    "promote",
    "publish",
    "read_current",
    "roll_back",
    "score_bulk",
    "shadow",
    "start",
    "states",
    "stop",
    "url",
    "withdraw",
]


def check(config: Experiment, again: bool = False) -> None:
    """Check what can be known before Ray starts: token, catalogue, address, port, and this machine's GPU.

    Args:
        config: `serve`, `backbone`, `lora` and `engine.batch_tokens` are read.
        again: the run has begun before; a process of it that was killed may hold the port for some seconds.

    Raises:
        LsatError: naming the key.
    """
    check_open(config)
    catalogue.read(config.serve.catalogue, config.serve.shortlist)
    if ray.is_initialized() or "RAY_ADDRESS" in os.environ:
        return  # a Serve that runs there has the port already, and its GPUs are not this machine's
    check_port(config, PREDECESSOR_S if again else 0.0)
    if config.backbone.path != "nano" and config.serve.gpus:
        tokens, states, folder = config.engine.batch_tokens, config.serve.states_mib << 20, locate(config.backbone)
        memory.check_replica(config.backbone, config.lora, tokens, states, folder, config.serve.gpus)


def start(
    config: Experiment, backbone_folder: Path, titles: Sequence[str], store_root: Path, run_dir: Path
) -> DeploymentHandle:
    """Start the run's application and return its handle; it serves what the run published last, else the backbone.

    The first application of a cluster is served under `/`, another under `/<name of the run>`.

    Args:
        config: `name`, `serve`, `backbone`, `lora`, `prompt`, `engine.batch_tokens` and `data.history` are read.
        backbone_folder: Hugging Face folder.
        titles: title of every item, for `score_bulk`.
        store_root: folder of the adapter store; like `run_dir` on storage that every replica sees.
        run_dir: where `current.json` lies.

    Raises:
        LsatError: when the port is taken, the token's variable is not set, what was published is damaged, or
            the replicas are not up within `serve.start_s`.
    """
    check(config)
    _check_current(Path(run_dir), AdapterStore(Path(store_root)))
    app = _bind(config, Path(backbone_folder), titles, Path(store_root), Path(run_dir))
    return _deploy(config, app)


def stop(config: Experiment) -> bool:
    """End the run's own application; others of the cluster go on. False when Serve has not done so in time."""
    done = threading.Event()

    def delete() -> None:
        with contextlib.suppress(TimeoutError, RayError, RayServeException):
            serve.delete(config.name)
            done.set()

    threading.Thread(target=delete, daemon=True).start()  # the call itself waits for ever for a controller that hangs
    return done.wait(STOP_S)


def url(config: Experiment) -> str:
    """Return the address under which the run's application answers.

    Raises:
        LsatError: when Serve's controller does not answer.
    """
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    try:
        details = ray.get(controller.get_serve_instance_details.remote(), timeout=STOP_S)
    except GetTimeoutError as error:
        raise LsatError(
            f"serve: its controller does not answer within {STOP_S:g} s; end it with `serve shutdown`"
        ) from error
    prefix = details["applications"][config.name]["route_prefix"].rstrip("/")
    return f"http://{config.serve.host}:{config.serve.port}{prefix}"


def score_bulk(
    handle: DeploymentHandle,
    samples: Any,
    names: Sequence[str] | None,
    replicas: int,
    timeout_s: float = 3600.0,
    tries: int = 3,
) -> Bulk:
    """Score samples on all replicas: each does every n-th pass, so the scores are bit for bit those of one replica.

    A part whose replica dies is done again on another; parts of different versions are all done again.

    Args:
        handle: of the application.
        samples: `Samples`, or a reference to them.
        names: of the models (None: all).
        replicas: into how many parts.
        timeout_s: seconds for all of it.
        tries: of every part.

    Raises:
        LsatError: when a part failed `tries` times, or time is up.
    """
    deadline, failure = time.monotonic() + timeout_s, ""
    parts: dict[int, Bulk] = {}
    for _ in range(tries):
        missing = [k for k in range(replicas) if k not in parts]
        waiting = {k: handle.score_bulk.remote(samples, names, (k, replicas)) for k in missing}
        for k, response in waiting.items():
            try:
                parts[k] = response.result(timeout_s=max(0.1, deadline - time.monotonic()))
            except LsatError as error:  # the replica's own words; another one would say the same
                raise LsatError(first_lines(getattr(error, "cause", error))) from error
            except (RayError, RayServeException, TimeoutError) as error:
                failure = f"{type(error).__name__}: {first_lines(error)}"
        newest = max((p.version for p in parts.values()), default=0)
        reference = next((p for p in parts.values() if p.version == newest), None)
        parts = {k: p for k, p in parts.items() if reference and (p.version, p.digest) == (newest, reference.digest)}
        if len(parts) == replicas and reference:
            several = list(parts.values())
            scores = {n: np.stack([p.scores[n] for p in several]) for n in reference.scores}
            return Bulk(newest, {n: np.nansum(s, axis=0) for n, s in scores.items()}, reference.models)
        failure = failure or "the version changed meanwhile"
        if time.monotonic() > deadline:
            break
    raise LsatError(f"bulk scoring: {len(parts)} of {replicas} parts are done ({failure}); look at `serve status`")


def application(args: dict[str, str]) -> Any:
    """Build the application for a Serve config file (`import_path: lsat_ray.distributed.serving:application`).

    Args:
        args: `run_dir`, with `config.resolved.yaml`, `current.json` and `adapters/`; `backbone`, a model folder, when
            it is not the one that the run was trained on; `token_env`, when it is not the config's `serve.token_env`.

    Raises:
        LsatError: when no token is asked for: the address is the Serve config's, and seldom loopback.
    """
    run_dir = Path(args["run_dir"])
    config = load(run_dir / "config.resolved.yaml")
    if "token_env" in args:
        config = config.model_copy(update={"serve": config.serve.model_copy(update={"token_env": args["token_env"]})})
    if config.serve.token_env is None:
        raise LsatError("serve.token_env: no token is asked for; add `token_env: LSAT_RAY_TOKEN` to the args")
    folder = Path(args["backbone"]) if "backbone" in args else backbone_of(config, run_dir)
    return _bind(config, folder, (), run_dir / "adapters", run_dir)


def _bind(config: Experiment, folder: Path, titles: Sequence[str], store_root: Path, run_dir: Path) -> Any:
    """Return the application with its options."""
    setup = Setup.of(config, folder, titles, store_root, run_dir)
    deployment = serve.deployment(
        serve.ingress()(Scorer),
        name="Scorer",
        num_replicas=config.serve.replicas,
        max_ongoing_requests=10_000,  # the replica itself refuses what it cannot answer in time
        max_queued_requests=-1,
        ray_actor_options={"num_cpus": config.serve.cpus, "num_gpus": config.serve.gpus},
        graceful_shutdown_timeout_s=10,
        health_check_period_s=5,
        max_constructor_retry_count=3,
        logging_config=QUIET,
    )
    return deployment.bind(setup)


def _deploy(config: Experiment, app: Any) -> DeploymentHandle:
    """Start Serve where it does not run, and the application, and wait until it runs."""
    _claim(config.serve.host, config.serve.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _open(config.serve.host, config.serve.port)
    others = set(serve.status().applications) - {config.name}
    target = serve.RunTarget(app, name=config.name, route_prefix=f"/{config.name}" if others else "/")
    (handle,) = serve.run_many([target], wait_for_applications_running=False)
    try:
        _await_running(config)
    except LsatError:
        serve.delete(config.name)
        raise
    return handle


def _open(host: str, port: int) -> None:
    """Start Serve and its proxies, one on every node.

    A proxy that is slow to start is killed by Serve's controller, which then starts another; whoever waited for the
    first one is told of its death.

    Raises:
        LsatError: when none comes up.
    """
    for left in reversed(range(STARTS)):
        try:
            serve.start(http_options={"host": host, "port": port}, logging_config=QUIET)
            return
        except (RayError, TimeoutError) as error:
            if not left:
                raise LsatError(
                    f"serve: its proxy at {host}:{port} does not come up ({first_lines(error)}); are the nodes very "
                    "busy? The same command goes on"
                ) from error


def _claim(host: str, port: int) -> None:
    """Check that the port is free, unless it is the running Serve's own; a Serve without applications is ended."""
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        running = True
    except ValueError:
        running = False
    reason = taken(host, port)
    if running and not reason:
        if serve.status().applications:
            raise LsatError(
                f"serve.port: Serve runs on this cluster already, and not on {host}:{port}; give its port, or end it "
                "with `serve shutdown`"
            )
        serve.shutdown()
    if reason and not running:
        raise LsatError(
            f"serve.port: {host}:{port} cannot be had ({reason}); choose another with --set serve.port=8001"
        )


def _await_running(config: Experiment) -> None:
    """Wait until the application runs.

    Raises:
        LsatError: when it failed, or time is up.
    """
    deadline = time.monotonic() + config.serve.start_s
    while True:
        found = serve.status().applications.get(config.name)
        state = found.status.value if found else "NOT_STARTED"
        if state == "RUNNING":
            return
        words = [found.message, *(d.message for d in found.deployments.values())] if found else []
        told = "; ".join(filter(None, words))
        if state in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise LsatError(f"serve: the application did not start: {_reason(told)}; see the replica's log")
        if time.monotonic() > deadline:
            serving = config.serve
            raise LsatError(
                f"serve.start_s: the replicas are not up after {serving.start_s:g} s ({first_lines(told) or state}); "
                f"{serving.replicas} x {serving.cpus:g} CPUs and {serving.gpus:g} GPUs must be free: lower "
                "serve.replicas, serve.cpus or serve.gpus (a fraction shares a GPU with training)"
            )
        time.sleep(0.1)


def _reason(told: str) -> str:
    """Return our own error out of the traceback that Serve passes on, else its first lines."""
    found = re.findall(r"LsatError: (.+)", told)
    return found[-1].strip() if found else first_lines(told)


def _check_current(run_dir: Path, store: AdapterStore) -> None:
    """Verify what was published last, here and once, rather than in a replica that is restarted in vain."""
    current = read_current(run_dir)
    if current is None:
        write_current(run_dir, Served(0, (FROZEN,)))
        return
    for digest in sorted({d for model in current.all_models for d in model.adapters}):
        try:
            store.load(digest)
        except LsatError as error:
            path = run_dir / CURRENT
            raise LsatError(f"{error}; delete {path} too, and the backbone is served without adapters") from error
