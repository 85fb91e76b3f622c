"""PESO's ablation of its penalty that needs activations: KL of what LoRA adds to a layer's output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from lsat_ray.adapters.lora import Adapter
from lsat_ray.generative.model import GenerativeModel
from lsat_ray.generative.spec import GenerativeSpec
from lsat_ray.training.magnitudes import layers


class OutputKl:
    """KL(softmax(s B A x) || softmax(s B_ref A_ref x)), a mean over the tokens x of each forward pass, over modules."""

    def __init__(self, spec: GenerativeSpec, model: GenerativeModel, initial: Adapter) -> None:
        assert spec.regulariser is not None
        over = len(initial.modules()) if spec.regulariser.reduction == "mean" else 1
        self.weight = spec.regulariser.weight / over
        self.model, self.scale = model, initial.scale
        self.pairs = {m: tuple(t.to(model.device) for t in initial.pair(m)) for m in initial.modules()}
        self.parts: list[torch.Tensor] = []
        self.real = torch.ones(0)

    @contextmanager
    def watched(self, real: torch.Tensor) -> Iterator[None]:
        """Note the outputs of the forward pass inside the block, over tokens where `real` [B, L] is True."""
        self.parts, self.real = [], real.flatten()
        handles = [layer.register_forward_hook(self._hook(name)) for name, layer in layers(self.model, "slot").items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def value(self) -> torch.Tensor:
        """Return the weighted penalty of the pass that was watched."""
        return self.weight * torch.stack(self.parts).sum()

    def _hook(self, name: str) -> Any:
        def note(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = inputs[0].flatten(0, -2).float()
            if len(x) != len(self.real):  # a walk that asks the last layer at the answers alone
                real = torch.ones(len(x), dtype=torch.bool, device=x.device)
            else:
                real = self.real
            now = [layer.lora_A["slot"].weight, layer.lora_B["slot"].weight]
            p, q = (
                functional.log_softmax(self.scale * (x[real] @ a.T) @ b.T, dim=-1) for a, b in (now, self.pairs[name])
            )
            self.parts.append((p.exp() * (p - q)).sum(-1).mean())

        return note
