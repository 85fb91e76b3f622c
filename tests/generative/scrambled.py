"""Weights that are not the zero update that a fresh adapter is."""

from __future__ import annotations

import torch

from lsat_ray.generative.model import GenerativeModel


def scramble(model: GenerativeModel, seed: int) -> None:
    """Fill the training slot and the codes' rows with seeded noise."""
    model.reset(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            if ".lora_A." not in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
