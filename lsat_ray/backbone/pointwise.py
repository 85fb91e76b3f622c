"""Norm and rotary embedding in few passes over memory, each with a backward pass of its own."""

from __future__ import annotations

from typing import Any

import torch


def norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Return `module(x)`, an RMS norm; a frozen one keeps less for the backward pass."""
    weight = module.weight
    if weight.requires_grad or hasattr(weight, "ds_id"):
        return module(x)
    return _RmsNorm.apply(x, weight, module.variance_epsilon)


class _RmsNorm(torch.autograd.Function):
    """`x / rms(x) * weight` with a frozen weight; keeps its input and one number a token."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = torch.rsqrt(length.square() / x.shape[-1] + epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return (x.float() * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight, inverse = ctx.saved_tensors
        wide = x.float()
        grad = grads[0].float() * weight
        along = (grad * wide).sum(-1, keepdim=True) * (inverse.pow(3) / -x.shape[-1])
        return grad.mul_(inverse).addcmul_(wide, along).to(x.dtype), None, None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return the rotary embedding of [T, heads, d]; cos and sin are [T, 1, d / 2]."""
    return _Rotate.apply(x, cos, sin)  # type: ignore[no-any-return, no-untyped-call]


class _Rotate(torch.autograd.Function):
    """Rotary embedding of [T, heads, d], halves as in LLaMA."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, -1.0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, sin, 1.0), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> torch.Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=sign)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin, value=-sign)
    return out
