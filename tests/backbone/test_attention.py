"""Attention whose weights are kept equals torch's own, values and gradients, and is what training on a CPU runs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lsat_ray.backbone import attention


def inputs(groups: int, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return query, key and value of 2 rows, 4 heads, 5 queries and 9 keys, as transposed views, and a mask a row."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 4, 6), (2, 9, 4 // groups, 6), (2, 9, 4 // groups, 6)]
    tensors = [torch.randn(s, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_() for s in shapes]
    seen = torch.rand(2, 1, 5, 9, generator=generator) < 0.5
    seen[..., 0] = True
    return tensors, torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))


def torch_own(tensors: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Return what torch's kernel gives."""
    query, key, value = tensors
    return functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)


@pytest.mark.parametrize("groups", [1, 2])
def test_values_and_gradients_are_torchs(groups: int) -> None:
    """For one key a query head and for several query heads a key."""
    tensors, mask = inputs(groups)
    ours, theirs = attention.attend(*tensors, mask, 0.3), torch_own(tensors, mask)
    assert "_Attention" in type(ours.grad_fn).__name__
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    pull = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    mine, other = torch.autograd.grad(ours, tensors, pull), torch.autograd.grad(theirs, tensors, pull)
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-6)


def test_weights_are_kept_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not without gradients, in half precision, or where they would take more memory than is allowed."""
    tensors, mask = inputs(1)
    with torch.no_grad():
        torch.testing.assert_close(attention.attend(*tensors, mask, 0.3), torch_own(tensors, mask), rtol=0, atol=0)
    half, mask_half = inputs(1, torch.bfloat16)
    assert "_Attention" not in type(attention.attend(*half, mask_half, 0.3).grad_fn).__name__
    weights = 2 * 4 * 5 * 9 * 4
    for allowed, kept in ((weights, True), (weights - 1, False)):
        monkeypatch.setattr(attention, "KEPT", allowed)
        assert ("_Attention" in type(attention.attend(*tensors, mask, 0.3).grad_fn).__name__) is kept
