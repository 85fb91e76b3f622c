"""What this machine has."""

from __future__ import annotations

import os
import sys

from lsat_ray.cli.placement import Node


def this_machine() -> Node:
    """Return what Ray would find here."""
    import torch

    return Node(cpu=float(os.cpu_count() or 1), gpu=float(torch.cuda.device_count()))


def at_hand() -> tuple[list[Node], str]:
    """Return the machines that a run may use, and their name: this one, or those of the cluster that is joined."""
    ray = sys.modules.get("ray")
    if "RAY_ADDRESS" not in os.environ and not (ray and ray.is_initialized()):
        return [this_machine()], "this machine"
    from lsat_ray.distributed.cluster import settle

    settle()
    from lsat_ray.distributed.resources import nodes

    return [Node(cpu, gpu) for cpu, gpu in nodes()], f"the cluster at {os.environ.get('RAY_ADDRESS', 'hand')}"


def host_memory() -> int:
    """Return the bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
