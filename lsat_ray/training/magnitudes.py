"""Learnable weights on the directions of adapters that are worn: what coefficients and SD-LoRA share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from lsat_ray.adapters.lora import AdaptedBackbone


def layers(model: AdaptedBackbone, slot: str) -> dict[str, Any]:
    """Return the LoRA layers that have a slot, by the module names of `Adapter.modules()`, sorted."""
    found = {n: m for n, m in model.peft.named_modules() if isinstance(m, LoraLayer) and slot in m.lora_A}
    return dict(sorted(found.items()))


@contextmanager
def weighted(
    model: AdaptedBackbone, slot: str, weights: Callable[[], torch.Tensor], ranks: Sequence[int]
) -> Iterator[None]:
    """Multiply the directions of a slot by weights while the block runs; gradients flow into the weights.

    Args:
        model: wears the slot.
        slot: PEFT's name of it.
        weights: returns [M, N], module (sorted by name) by adapter.
        ranks: rank of each of the N adapters whose directions follow one another in the slot.
    """
    counts = torch.tensor(list(ranks))

    def hook(row: int) -> Callable[[Any, Any, torch.Tensor], torch.Tensor]:
        def scale(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            here = weights()[row].to(output.dtype)
            return output * here.repeat_interleave(counts.to(here.device))

        return scale

    handles = [
        layer.lora_A[slot].register_forward_hook(hook(row)) for row, layer in enumerate(layers(model, slot).values())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
