"""Gated meta-LoRAs within one linear layer: each sample weighs its members between A and B (RecLoRA; methods.md 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Mixing(NamedTuple):
    """What the A of a slot with meta-LoRAs carries as its attribute `mixing`."""

    weights: Callable[[], torch.Tensor]
    """Returns the weights of the batch that is in the model, [B, N]."""
    factors: bool
    """(sum g B)(sum g A) x rather than sum g B A x."""


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
