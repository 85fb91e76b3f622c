"""What a cluster can place: its machines, and those that its autoscaler may add."""

from __future__ import annotations

import ray

from lsat_ray.distributed.cluster import connect, disconnect


def nodes() -> list[tuple[float, float]]:
    """Return (CPUs, GPUs) of every machine that the cluster has or may get.

    The autoscaler's limits are those it has announced; without an autoscaler only live machines count.
    """
    here = connect()
    try:
        alive = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        found = [(float(r.get("CPU", 0)), float(r.get("GPU", 0))) for r in alive]
        config = ray._private.state.state.get_cluster_config()
        for group in config.node_group_configs if config else ():
            room = max(0, group.max_count) if group.max_count >= 0 else 64
            each = (float(group.resources.get("CPU", 0)), float(group.resources.get("GPU", 0)))
            found += [each] * max(0, room - found.count(each))
        return found
    finally:
        if here:
            disconnect()
