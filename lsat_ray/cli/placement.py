"""Whether the machines at hand can ever place what a config asks Ray for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lsat_ray.config import Experiment

SEARCH_CPU = 0.1
"""Logical CPUs of the trial that searches merge weights."""


@dataclass(frozen=True)
class Node:
    """What one machine offers to Ray."""

    cpu: float
    gpu: float


@dataclass(frozen=True)
class Demand:
    """What one process asks for; it must fit on one machine."""

    what: str
    """`training worker`, `replica` or `search trial`."""
    cpu: float
    gpu: float


def demands(config: Experiment, endpoint: bool = True) -> list[Demand]:
    """Return everything that a run holds at the same time.

    Args:
        config: `engine` and `serve` are read.
        endpoint: whether the run serves (a replay) or not (a study).
    """
    engine, serve = config.engine, config.serve
    wanted = [Demand("training worker", engine.cpus, engine.gpus)] * (engine.sessions * engine.workers)
    if endpoint:
        wanted += [Demand("replica", serve.cpus, serve.gpus)] * serve.replicas
    return [*wanted, Demand("search trial", SEARCH_CPU, 0.0)]


def problem(config: Experiment, nodes: Sequence[Node], endpoint: bool = True) -> str | None:
    """Return one line that says what can never be placed and the ways out, or None when all fits.

    The largest demands are placed first, each where it fits; part of a GPU must be found on one GPU.

    Args:
        config: `engine` and `serve` are read.
        nodes: the machines, with those that an autoscaler may add.
        endpoint: whether the run serves.
    """
    engine = config.engine
    if 0 < engine.gpus < 1 and engine.workers > 1:
        return (
            f"engine.gpus {engine.gpus:g} with engine.workers {engine.workers}: two workers of a session cannot share "
            "a GPU (NCCL); set engine.workers=1, or engine.gpus=1"
        )
    wanted = demands(config, endpoint)
    if _place(wanted, nodes) is None:
        return None
    asked = _told(sum(d.cpu for d in wanted), sum(d.gpu for d in wanted))
    have = _told(sum(n.cpu for n in nodes), sum(n.gpu for n in nodes))
    ways = _ways_out(config, nodes, endpoint)
    return f"the run asks for {asked} at once ({_parts(config, endpoint)}), there are {have}; {ways}"


def _place(wanted: Sequence[Demand], nodes: Sequence[Node]) -> Demand | None:
    """Return the first demand that finds no place, the largest ones placed first."""
    cpus = [n.cpu for n in nodes]
    slots = [[1.0] * int(n.gpu) for n in nodes]
    for demand in sorted(wanted, key=lambda d: (-d.gpu, -d.cpu)):
        for i in range(len(nodes)):
            if demand.cpu <= cpus[i] + 1e-9 and (left := _take(slots[i], demand.gpu)) is not None:
                slots[i], cpus[i] = left, cpus[i] - demand.cpu
                break
        else:
            return demand
    return None


def _take(slots: list[float], gpu: float) -> list[float] | None:
    """Return what is left of a machine's GPUs after a demand, or None when it does not fit."""
    if gpu == 0:
        return slots
    if gpu < 1:
        at = next((i for i, free in enumerate(slots) if free + 1e-9 >= gpu), None)
        return None if at is None else [free - gpu * (i == at) for i, free in enumerate(slots)]
    whole = [i for i, free in enumerate(slots) if free == 1.0][: int(gpu)]
    return None if len(whole) < gpu else [0.0 if i in whole else free for i, free in enumerate(slots)]


def _parts(config: Experiment, endpoint: bool) -> str:
    engine, serve = config.engine, config.serve
    number = engine.sessions * engine.workers
    parts = [f"{number} training worker{'s' * (number > 1)} of {_told(engine.cpus, engine.gpus)}"]
    if endpoint:
        parts.append(f"{serve.replicas} replica{'s' * (serve.replicas > 1)} of {_told(serve.cpus, serve.gpus)}")
    return ", ".join(parts)


def _ways_out(config: Experiment, nodes: Sequence[Node], endpoint: bool) -> str:
    engine, serve = config.engine, config.serve
    gpus = sum(n.gpu for n in nodes)
    if engine.gpus + serve.gpus * endpoint == 0:
        return "lower engine.sessions, engine.workers or serve.replicas, or ask for fewer engine.cpus and serve.cpus"
    if gpus == 0:
        return "there is no GPU: set engine.gpus=0 serve.gpus=0 and backbone.device=cpu"
    ways = []
    if engine.workers == 1 and endpoint and serve.gpus:
        each = math.ceil((engine.sessions + serve.replicas) / gpus)
        share = int(100 / each) / 100
        if each > 1:
            ways.append(f"share GPUs with --set engine.gpus={share:g} --set serve.gpus={share:g}")
    if endpoint and serve.gpus and engine.sessions * engine.workers * engine.gpus <= gpus:
        ways.append("serve on the CPU with --set serve.gpus=0 --set backbone.device=auto")
    if engine.sessions * engine.workers > 1:
        ways.append("lower engine.sessions or engine.workers")
    return ", or ".join(ways) or "add GPUs"


def _told(cpu: float, gpu: float) -> str:
    return f"{gpu:g} GPU and {cpu:g} CPU"
