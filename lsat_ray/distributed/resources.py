"""What a cluster can place: its machines, and those that its autoscaler may add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray

from lsat_ray.distributed.cluster import connect, disconnect

UNLIMITED = 64
"""Machines that stand for an autoscaler's group without a limit."""


def nodes() -> list[tuple[float, float]]:
    """Return (CPUs, GPUs) of every machine that the cluster has or may get."""
    here = connect()
    try:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return offered(alive, ray._private.state.state.get_cluster_config())
    finally:
        if here:
            disconnect()


def offered(alive: Sequence[Mapping[str, float]], config: Any) -> list[tuple[float, float]]:
    """Return (CPUs, GPUs) of live machines and of those that the autoscaler's groups still have room for.

    Args:
        alive: resources of the live machines.
        config: what the autoscaler has announced (Ray's `ClusterConfig` message), None without one.
    """
    found = [_size(resources) for resources in alive]
    for group in config.node_group_configs if config else ():
        room = group.max_count if group.max_count >= 0 else UNLIMITED
        each = _size(group.resources)
        found += [each] * max(0, room - found.count(each))
    return found


def _size(resources: Mapping[str, float]) -> tuple[float, float]:
    return float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
