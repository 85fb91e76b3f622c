"""What a machine, a config and its log have to do with each other: one line per finding, with its remedy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lsat_ray.cli.finding import Finding
from lsat_ray.cli.machine import at_hand, host_memory
from lsat_ray.cli.placement import problem
from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError
from lsat_ray.runs.check import check

NEEDED = ("torch", "transformers", "peft", "numpy", "pandas")
"""Packages that every run needs."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOW_DISK, NO_DISK = 10.0, 1.0
"""GiB below which the disk is warned of, and below which it fails."""


def examine(config: Experiment, runs_dir: Path) -> Iterator[Finding]:
    """Yield the findings, cheap ones first; nothing is started and nothing is written but a probe in `runs_dir`.

    Args:
        config: the experiment.
        runs_dir: where its folder would lie.
    """
    yield from _guarded("versions", lambda: versions(config))
    yield from _guarded("devices", lambda: devices(config))
    yield from _guarded("placement", lambda: placement(config))
    yield from _guarded("disk", lambda: disk(runs_dir))
    yield from _guarded("ports", lambda: ports(config))
    try:
        periods = check(config)
    except LsatError as error:
        yield Finding("fail", "log", str(error))
        return
    yield from log(periods)
    from lsat_ray.cli import model

    yield from _guarded("backbone", lambda: model.findings(config, periods.periods, runs_dir))


def _guarded(what: str, found: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Turn the one error of bad input into a finding."""
    try:
        yield from found()
    except LsatError as error:
        yield Finding("fail", what, str(error))


def on_ray(config: Experiment) -> bool:
    """Return whether the config runs on Ray."""
    return bool(getattr(config.engine, "backend", "ray") == "ray")


def versions(config: Experiment) -> Iterator[Finding]:
    """Name the versions and the packages that the config needs and that are not there."""
    wanted = [*NEEDED]
    if on_ray(config):
        wanted.append("ray")
        if config.engine.kind == "deepspeed":
            wanted.append("deepspeed")
    if config.backbone.quantization:
        wanted.append("bitsandbytes")
    found: dict[str, str] = {}
    for name in wanted:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            ways = {
                "deepspeed": "pip install deepspeed, or --set engine.kind=torch",
                "ray": "pip install 'ray[default,train,tune,serve]', or --set engine.backend=local",
            }
            yield Finding("fail", "versions", f"{name} is not installed", ways.get(name, f"pip install {name}"))
    listed = ", ".join(f"{k} {v}" for k, v in found.items())
    yield Finding("ok", "versions", f"python {platform.python_version()}, {listed}")


def devices(config: Experiment) -> Iterator[Finding]:
    """Name GPUs and cores, and say whether they fit the config and its type of weights."""
    import torch

    cores = f"{os.cpu_count()} cores, {host_memory() / 2**30:.0f} GiB"
    count = torch.cuda.device_count()
    cards = [torch.cuda.get_device_properties(i) for i in range(count)]
    told = ", ".join(f"{c.name} ({c.total_memory / 2**30:.0f} GiB)" for c in cards) or "no GPU"
    yield Finding("ok", "devices", f"{told}; {cores}; torch {torch.__version__}")
    wants_gpu = config.engine.gpus > 0 or config.serve.gpus > 0 or config.backbone.device.startswith("cuda")
    if wants_gpu and not count and "RAY_ADDRESS" not in os.environ:
        yield Finding(
            "fail",
            "devices",
            "the config asks for GPUs (engine.gpus, serve.gpus or backbone.device) and torch sees none here",
            "run it where there are GPUs, or --set engine.gpus=0 --set serve.gpus=0 --set backbone.device=cpu",
        )
    if count and not wants_gpu:
        yield Finding("warn", "devices", "there is a GPU that the config leaves idle", "--set engine.gpus=0.5")
    if config.engine.gpus and config.serve.gpus == 0 and config.backbone.device.startswith("cuda"):
        yield Finding(
            "fail",
            "devices",
            "replicas without a GPU cannot load a backbone on cuda",
            "--set backbone.device=auto, or a share with --set serve.gpus=0.25",
        )
    threads = config.engine.sessions * config.engine.workers * config.engine.threads
    if not config.engine.gpus and threads > (os.cpu_count() or 1):
        yield Finding("warn", "devices", f"{threads} training threads on {cores}", "lower engine.sessions or threads")
    yield bfloat16(config)


def bfloat16(config: Experiment) -> Finding:
    """Say whether the device multiplies bfloat16 natively, and which type that makes of the backbone."""
    from lsat_ray.backbone.load import pick_device
    from lsat_ray.backbone.precision import native_bfloat16

    device, asked = config.backbone.device, config.backbone.dtype
    try:
        native, why = native_bfloat16(pick_device(device))
    except (RuntimeError, AssertionError) as error:
        return Finding("warn", "bfloat16", f"{device} cannot be asked: {str(error).splitlines()[0]}")
    text = f"{'native' if native else 'not native'} ({why})"
    if asked == "bfloat16" and not native:
        return Finding("warn", "bfloat16", f"{text}, and the config asks for it", "--set backbone.dtype=float32")
    if asked == "float32" and native:
        text += "; backbone.dtype=auto would use it"
    if asked == "auto":
        text += f"; auto is {'bfloat16' if native else 'float32'}"
    return Finding("ok", "bfloat16", text)


def placement(config: Experiment) -> Iterator[Finding]:
    """Say whether the machine, or the cluster of `RAY_ADDRESS`, can ever place what the config asks for."""
    if not on_ray(config):
        yield Finding("ok", "placement", "one process (engine.backend local)")
        return
    nodes, where = at_hand()
    line = problem(config, nodes)
    if line:
        yield Finding("fail", "placement", line)
    else:
        yield Finding("ok", "placement", f"{where} can place every training worker, replica and search trial")


def disk(runs_dir: Path) -> Iterator[Finding]:
    """Say whether runs can be written, and how much room there is."""
    place = next(p for p in (runs_dir, *runs_dir.parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Finding("fail", "disk", f"{place} cannot be written", "give another --runs-dir")
        return
    free = shutil.disk_usage(place).free / 2**30
    text = f"{free:.1f} GiB free under {place}"
    if free < NO_DISK:
        yield Finding("fail", "disk", text, "free some, or give another --runs-dir")
    elif free < LOW_DISK:
        yield Finding("warn", "disk", text, "free some, or give another --runs-dir")
    else:
        yield Finding("ok", "disk", text)


def ports(config: Experiment) -> Iterator[Finding]:
    """Say whether the endpoint's port is free and its token is set."""
    if not on_ray(config):
        return
    serve = config.serve
    family = socket.AF_INET6 if ":" in serve.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((serve.host, serve.port))
            yield Finding("ok", "ports", f"{serve.host}:{serve.port} is free for the endpoint")
        except OSError as error:
            yield Finding(
                "fail",
                "ports",
                f"serve.port: {serve.host}:{serve.port} cannot be had ({error.strerror})",
                "choose another with --set serve.port=8001, or end the program that listens there",
            )
    if serve.token_env and not os.environ.get(serve.token_env, "").strip():
        yield Finding(
            "fail",
            "ports",
            f"serve.token_env: {serve.token_env} is not set",
            f"export {serve.token_env}, or --set serve.token_env=null",
        )
    if serve.host not in LOOPBACK and not serve.token_env:
        yield Finding(
            "warn",
            "ports",
            f"the endpoint answers anyone who reaches {serve.host}:{serve.port}",
            "set serve.token_env, or serve.host=127.0.0.1",
        )


def log(checked: Any) -> Iterator[Finding]:
    """Say what was read, how many rows were dropped, and how the labels of the periods are balanced."""
    yield Finding("ok", "log", str(checked.summary.line()))
    dropped = getattr(checked.summary, "dropped", 0)
    text = f"{dropped} rows of the log dropped"
    yield Finding("warn" if dropped else "ok", "log", text)
    for warning in checked.summary.warnings:
        yield Finding("warn", "log", warning)
    periods = checked.periods
    shares = [float(periods.rows(t).label.mean()) for t in range(1, periods.count + 1)]
    one_class = [t for t, share in enumerate(shares, start=1) if share in (0.0, 1.0)]
    single = [t for t in range(1, periods.count + 1) if len(set(periods.rows(t, "validation").label.tolist())) == 1]
    spread = f"likes per period: {min(shares):.1%} to {max(shares):.1%}"
    if one_class:
        yield Finding(
            "fail",
            "labels",
            f"{spread}; period {one_class[0]} has one class only, so no AUC",
            "set data.positive_above, or cut longer periods",
        )
    elif single:
        yield Finding(
            "warn",
            "labels",
            f"{spread}; V_{single[0]} has one class only, so weights are chosen there by log-loss",
            "raise periods.validation, or cut longer periods",
        )
    else:
        yield Finding("ok", "labels", spread)
