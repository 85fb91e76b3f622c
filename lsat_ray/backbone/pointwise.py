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
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return _times(wide, inverse, x).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight, inverse = ctx.saved_tensors
        wide = x.float()
        grad = _times(grads[0].float(), weight, grads[0])
        along = (grad * wide).sum(-1, keepdim=True) * (inverse.pow(3) / -x.shape[-1])
        return grad.mul_(inverse).addcmul_(wide, along).to(x.dtype), None, None


def _times(wide: torch.Tensor, factor: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Return the product, in place where `wide` is a copy of what was given in another type."""
    return wide * factor if wide is given else wide.mul_(factor)


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
    parts = x.unflatten(-1, (2, -1))  # [T, heads, 2, d / 2]
    out = torch.mul(parts, cos[:, :, None], out=parts.new_empty(parts.shape))
    out[:, :, 0].addcmul_(parts[:, :, 1], sin, value=sign)
    out[:, :, 1].addcmul_(parts[:, :, 0], sin, value=-sign)
    return out.flatten(-2)
