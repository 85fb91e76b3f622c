"""Personalised LoRA: N meta-LoRAs, mixed sample by sample and module by module by a gate (RecLoRA; methods.md 6).

The N adapters stand in one slot of rank N r, one below the other. For a token x of sample s

    products   sum_n g[s,n] B_n A_n x              = B_cat diag(g[s]) A_cat x
    factors    (sum_n g[s,n] B_n)(sum_n g[s,n] A_n) x

so a batch of samples takes one product with A_cat, a few multiplications in N r dimensions, and one with B_cat.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.backbone import gated
from lsat_ray.backbone.gated import Mixing
from lsat_ray.config import GateConfig
from lsat_ray.errors import LsatError

SLOT = "meta"
"""PEFT's name of the slot that holds the meta-LoRAs."""


class Gate(nn.Module):
    """One small network for every adapted module: LayerNorm, linear, ReLU, linear, softmax."""

    def __init__(self, modules: int, width: int, config: GateConfig) -> None:
        """Make M gates over N members.

        Args:
            modules: M.
            width: of the recommender's vector.
            config: N, hidden units, temperature and the kind of mix.
        """
        super().__init__()
        self.config = config
        self.first = nn.Parameter(torch.empty(modules, config.hidden, width))
        self.first_bias = nn.Parameter(torch.empty(modules, config.hidden))
        self.second = nn.Parameter(torch.empty(modules, config.members, config.hidden))
        self.second_bias = nn.Parameter(torch.empty(modules, config.members))
        self.weights: torch.Tensor | None = None  # of the batch that is in the model

    def reset(self, generator: torch.Generator) -> None:
        """Draw weights as `nn.Linear` does."""
        with torch.no_grad():
            for weight, bias in ((self.first, self.first_bias), (self.second, self.second_bias)):
                bound = 1 / math.sqrt(weight.shape[-1])
                for parameter in (weight, bias):
                    parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)

    def forward(self, profile: torch.Tensor) -> torch.Tensor:
        """Return weights that sum to one over the members, [B, M, N], of vectors [B, width]."""
        h = nn.functional.layer_norm(profile, profile.shape[-1:])
        hidden = torch.relu(torch.einsum("bw,mhw->bmh", h, self.first) + self.first_bias)
        logits = torch.einsum("bmh,mnh->bmn", hidden, self.second) + self.second_bias
        return torch.softmax(logits / self.config.temperature, -1)

    def of(self, module: int) -> torch.Tensor:
        """Return the weights of a module's members for the batch that is in the model, [B, N]."""
        assert self.weights is not None
        return self.weights[:, module]


@contextmanager
def personal(model: AdaptedBackbone, config: GateConfig | None, width: int) -> Iterator[None]:
    """Give the model gated meta-LoRAs as its training slot while the block runs; None leaves it as it is.

    Args:
        model: whose `lora` says the shape of each member.
        config: of the gate.
        width: of the vectors that a batch brings (`Batch.profile`).

    Raises:
        LsatError: with dropout, which the meta-LoRAs do not have.
    """
    if config is None:
        yield
        return
    if model.lora.dropout:
        raise LsatError("lora.dropout: the meta-LoRAs of reclora have none; set it to 0")
    rank = model.lora.rank * config.members
    model.peft.add_adapter(SLOT, type(model.config)(**{**model.config.to_dict(), "r": rank, "lora_alpha": rank}))
    layers = [layer.lora_A[SLOT] for _, layer in sorted(model.layers().items()) if SLOT in layer.lora_A]
    gate = Gate(len(layers), width, config).to(model.device)
    for number, layer in enumerate(layers):
        gated.gate(layer, Mixing(functools.partial(gate.of, number), config.mix == "factors"))
    model.slot, model.members, model.gate = SLOT, config.members, gate
    model.use_slot(SLOT, model.lora.alpha / model.lora.rank)
    try:
        yield
    finally:
        model.slot, model.members, model.gate = "slot", 1, None
        model.peft.set_adapter("slot")
        model.peft.delete_adapter(SLOT)
