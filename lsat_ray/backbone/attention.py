"""Attention, by whichever way is fastest where it runs and gives the same numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

KEPT = 64 << 20
"""Bytes of attention weights that a layer may keep for its backward pass; above it they are computed again."""

KEEPING = ("cpu",)
"""Kinds of device on which weights are kept; whether it pays on a GPU `benchmarks/gpu.py` measures."""
PRODUCTS = (torch.float32, torch.bfloat16)
LANES = 32
"""bfloat16 numbers in a register: a softmax over a multiple of it takes half to three quarters of the time."""


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Return `softmax(scale query key' + mask) value`, [B, heads, L, d].

    Training on a CPU keeps the attention weights: there the fused kernel's backward pass, which computes them again,
    costs more than the four matrix products that are left. In bfloat16 only the products are native on a CPU, so that
    there everything goes this way, scoring too. Everything else is torch's own kernel.

    Args:
        query: [B, heads, L, d].
        key: [B, heads or a divisor of it, K, d]; value likewise.
        mask: [B or 1, 1, L, K], 0 where query sees key, minus infinity elsewhere; every query sees a key.
            None: plain causal, L = K.
        scale: what products are multiplied by.
    """
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
    if _by_products(query, key, value, mask):
        seen = _causal(query) if mask is None else mask
        return _Attention.apply(query, key, value, seen, scale)  # type: ignore[no-any-return, no-untyped-call]
    causal = mask is None
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale)


def unseen(keys: int, like: torch.Tensor) -> int:
    """Return how many keys that no query sees make `attend` faster, beside that many that some do."""
    return -keys % LANES if like.device.type in KEEPING and like.dtype == torch.bfloat16 else 0


def _by_products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    weights = query[..., 0].numel() * key.shape[2] * query.element_size()
    if query.device.type not in KEEPING or query.dtype not in PRODUCTS or weights > KEPT:
        return False
    trained = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    return query.dtype == torch.bfloat16 or (trained and mask is not None)


def _causal(query: torch.Tensor) -> torch.Tensor:
    size = query.shape[2]
    return query.new_full((size, size), float("-inf")).triu_(1)[None, None]


class _Attention(torch.autograd.Function):
    """Attention as two products forwards and four backwards; keeps its weights and overwrites what it need not keep.

    In bfloat16 products and softmax add up in float32; scores, weights and their gradients are rounded when stored.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
    ) -> torch.Tensor:
        shape = query.shape
        q, k, v = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        weights = mask.expand(*shape[:3], -1).reshape(len(q), shape[2], -1)
        weights = torch.baddbmm(weights, q, k.transpose(1, 2), alpha=scale)
        torch.softmax(weights, -1, out=weights)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return torch.bmm(weights, v).view(shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        q, k, v, weights = ctx.saved_tensors
        shape = grads[0].shape
        grad = grads[0].flatten(0, 1)
        score = torch.bmm(grad, v.transpose(1, 2))
        torch.ops.aten._softmax_backward_data.out(score, weights, -1, weights.dtype, grad_input=score)
        return (
            torch.baddbmm(q, score, k, beta=0, alpha=ctx.scale).view(shape),
            torch.baddbmm(k, score.transpose(1, 2), q, beta=0, alpha=ctx.scale).view(*shape[:2], *k.shape[1:]),
            torch.bmm(weights.transpose(1, 2), grad).view(*shape[:2], *v.shape[1:]),
            None,
            None,
        )
