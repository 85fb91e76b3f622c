"""Merges of adapters in parameter space; the algebra is exact or named otherwise (methods.md 2 and 7.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lsat_ray.adapters.lora import Adapter
from lsat_ray.errors import LsatError


def factor_arithmetic(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Average A and B separately, entry by entry, as the LSAT code does (LSAT-TA).

    The merged update holds cross terms: with weights (l, 1 - l) it is
    `scale * (l B_h + (1 - l) B_t)(l A_h + (1 - l) A_t)`.

    Raises:
        LsatError: when ranks, scales or modules differ.
    """
    first = _same_modules(adapters, weights)
    if any(a.rank != first.rank or a.scale != first.scale for a in adapters):
        raise LsatError("factor_arithmetic: the adapters differ in rank or scale; use delta_arithmetic")
    state = {
        name: torch.stack([w * a.state[name] for a, w in zip(adapters, weights, strict=True)]).sum(0)
        for name in first.state
    }
    return Adapter(state, first.rank, first.alpha)


def delta_arithmetic(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Add the weighted updates exactly: ranks are concatenated (`cat`), there are no cross terms.

    The result has scale 1; weights and scales are folded into B.
    """
    first = _same_modules(adapters, weights)
    state = {}
    for module in first.modules():
        pairs = [a.pair(module) for a in adapters]
        state[f"{module}.lora_A.weight"] = torch.cat([a for a, _ in pairs], dim=0)
        state[f"{module}.lora_B.weight"] = torch.cat(
            [w * x.scale * b for (_, b), w, x in zip(pairs, weights, adapters, strict=True)], dim=1
        )
    rank = sum(a.rank for a in adapters)
    return Adapter(state, rank, float(rank))


def _same_modules(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    if not adapters or len(adapters) != len(weights):
        raise LsatError(f"merge: {len(adapters)} adapters but {len(weights)} weights")
    first = adapters[0]
    for other in adapters[1:]:
        if other.state.keys() != first.state.keys():
            raise LsatError("merge: the adapters change different modules; train them with the same lora.targets")
    return first


PARAMETER_MERGES: dict[str, Callable[[Sequence[Adapter], Sequence[float]], Adapter]] = {
    "factor-arithmetic": factor_arithmetic,
    "delta-arithmetic": delta_arithmetic,
}
"""Merges by the name that models and strategies use."""
