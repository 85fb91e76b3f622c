"""Gated LoRAs within one linear layer: each sample weighs its members between A and B.

RecLoRA's meta-LoRAs (methods.md 6), and several adapters in one pass, where each copy of the batch has one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Mixing(NamedTuple):
    """What the A of a slot with several members carries as its attribute `mixing`."""

    weights: Callable[[], torch.Tensor]
    """Returns the weights of the batch that is in the model, [B, N]."""
    factors: bool
    """(sum g B)(sum g A) x rather than sum g B A x."""


def gate(layer: Any, mixing: Mixing) -> None:
    """Let an A mix its members: the lean walk reads the attribute, any other forward meets the hook."""
    layer.mixing = mixing
    layer.register_forward_hook(_mixed)


def _mixed(layer: Any, inputs: tuple[torch.Tensor, ...], low: torch.Tensor) -> torch.Tensor:
    return mix(low, layer.mixing.weights(), layer.mixing.factors)


def mix(low: torch.Tensor, weight: torch.Tensor, factors: bool) -> torch.Tensor:
    """Return A_cat x with each sample's weights on its members.

    Args:
        low: [T, N r], the tokens of one sample after the other, equally many of each; or [B, L, N r].
        weight: [B, N].
        factors: see `Mixing`.
    """
    parts, weight = _parts(low, weight)
    mixed = weight * parts
    if factors:
        mixed = weight * mixed.sum(2, keepdim=True)
    return mixed.view(low.shape)


def unmix(
    grad: torch.Tensor, low: torch.Tensor, weight: torch.Tensor, factors: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of `mix` for `low` [T, N r] and `weight` [B, N]."""
    parts, own = _parts(low, weight)
    back, _ = _parts(grad, weight)
    if not factors:
        return (own * back).view(low.shape), (back * parts).sum((1, 3)).to(weight.dtype)
    ahead, behind = ((own * t).sum(2, keepdim=True) for t in (parts, back))
    found = (back * ahead).sum((1, 3)) + (parts * behind).sum((1, 3))
    return (own * behind).view(low.shape), found.to(weight.dtype)


def _parts(low: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [B, L, N, r] and [B, 1, N, 1]."""
    members = weight.shape[1]
    return (
        low.view(len(weight), -1, members, low.shape[-1] // members),
        weight[:, None, :, None].to(low.dtype),
    )
