"""Whether a device multiplies bfloat16 matrices by instructions of its own."""

from __future__ import annotations

import time
from functools import cache

import torch

GAIN = 1.5
"""A CPU is native when its bfloat16 product is that many times as fast as its float32 one: emulated it is slower, with
AVX512-BF16 about twice as fast, with AMX seven to ten times."""


def native_bfloat16(device: torch.device) -> tuple[bool, str]:
    """Return whether the device multiplies bfloat16 natively, and why, as a part of a sentence.

    A GPU is asked for its compute capability (8.0, Ampere, is the first with bfloat16), a CPU multiplies.
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        return (major, minor) >= (8, 0), f"{name} has compute capability {major}.{minor}, 8.0 is needed"
    if device.type == "cpu":
        gain = _cpu_gain()
        words = f"a bfloat16 product takes {1 / gain:.2f} of the time of a float32 one"
        return gain >= GAIN, f"CPU ({torch.backends.cpu.get_cpu_capability()}): {words}"
    return False, f"nothing is known of {device.type}"


@cache
def _cpu_gain(size: int = 512, rounds: int = 5) -> float:
    """Return the time of a float32 product over that of a bfloat16 one, the best of some interleaved rounds."""
    best: dict[torch.dtype, float] = {}
    pairs = {kind: torch.randn(size, size).to(kind) for kind in (torch.float32, torch.bfloat16)}
    for _ in range(rounds + 1):  # the first round warms up
        for kind, a in pairs.items():
            began = time.perf_counter()
            a @ a
            spent = time.perf_counter() - began
            best[kind] = min(best.get(kind, spent), spent)
    return best[torch.float32] / best[torch.bfloat16]
