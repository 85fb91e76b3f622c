"""Dropout whose masks are a function of what is dropped, not of how the work is laid out.

A generator's masks depend on the order of its calls: on workers, micro-batches, padding and what was drawn before. Here
every element's mask is a hash of (seed, step, module, sequence, place, feature), a counter-based generator in the sense
of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3"). There is no state to keep, and an activation that
is computed again in the backward pass meets the same mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Batch

PREFIX = -1
"""Number of the sequence that the shared prefix counts as."""


class Dropout(nn.Module):
    """Zero elements of the input of one LoRA module with probability p, in training; the others grow by 1 / (1 - p)."""

    def __init__(self, p: float, number: int) -> None:
        """Name the module whose input this is.

        Args:
            p: share that is dropped, in [0, 1).
            number: of the module, so that no two share a mask.
        """
        super().__init__()
        self.p, self.number = p, number
        self.keys: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x with elements dropped.

        Args:
            x: [..., in]; its rows are the tokens that `use` was last given.

        Raises:
            LsatError: in training, when the tokens are not known.
        """
        if not self.training:
            return x
        if self.keys is None:
            raise LsatError("dropout: a batch in training needs its `noise`; give it to `collate`")
        dropped = mask(self.keys, self.number, x.shape[-1], self.p).view(x.shape)
        return x.masked_fill(dropped, 0.0) * (1.0 / (1.0 - self.p))

    def extra_repr(self) -> str:
        """Show p where the model is printed."""
        return f"p={self.p}"


def use(module: Any, keys: torch.Tensor | None) -> None:
    """Tell the dropout of one LoRA module (or of all modules below this one) which tokens its next input holds."""
    for part in module.modules():
        if isinstance(part, Dropout):
            part.keys = keys


def token_keys(batch: Batch) -> torch.Tensor | None:
    """Return a key per token, int64 [P + B L], the prefix's before the rows'; None where nothing is dropped."""
    if batch.noise is None:
        return None
    device, prefix, width = batch.tokens.device, len(batch.prefix), batch.tokens.shape[1]
    seed, step = (torch.tensor(n, device=device) for n in batch.noise)
    place = torch.arange(max(prefix, width), device=device)
    sequence = torch.cat([batch.sequence.new_tensor([PREFIX]), batch.sequence])
    rows = _mix(_mix(_mix(seed) + step) + sequence)
    keys = _mix(rows[:, None] + place)
    return torch.cat([keys[0, :prefix], keys[1:, :width].flatten()])


def mask(keys: torch.Tensor, module: int, features: int, p: float) -> torch.Tensor:
    """Return bool [T, features], True where an element is dropped.

    Args:
        keys: int64 [T] of `token_keys`.
        module: number of the module.
        features: width of its input.
        p: share that is dropped.
    """
    feature = _mix(_mix(torch.tensor(module, device=keys.device)) + torch.arange(features, device=keys.device))
    grid = keys.int()[:, None] + feature.int()  # 32 bits are enough for a mask, and half the work
    for shift, factor in ((16, 0x7FEB352D), (15, -0x7B935975)):  # Wellons' "lowbias32"
        grid ^= (grid >> shift) & ((1 << (32 - shift)) - 1)
        grid *= factor
    grid ^= (grid >> 16) & 0xFFFF
    return grid < round(p * 2**32) - 2**31


def _mix(value: torch.Tensor) -> torch.Tensor:
    """Return one step of SplitMix64 of int64 values (Steele 2014), arithmetic modulo 2^64."""
    value = value + -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        value = (value ^ ((value >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return value ^ ((value >> 31) & ((1 << 33) - 1))
