"""What this machine has."""

from __future__ import annotations

import os

from lsat_ray.cli.placement import Node


def this_machine() -> Node:
    """Return what Ray would find here."""
    import torch

    return Node(cpu=float(os.cpu_count() or 1), gpu=float(torch.cuda.device_count()))


def host_memory() -> int:
    """Return the bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
