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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_torchs(groups: int, dtype: torch.dtype) -> None:
    """For one key a query head and for several query heads a key; in bfloat16 no further from float32 than torch is."""
    tensors, mask = inputs(groups, dtype)
    wide = [t.detach().float().requires_grad_() for t in tensors]
    truth = torch_own(wide, mask.float())
    ours, theirs = attention.attend(*tensors, mask, 0.3), torch_own(tensors, mask)
    assert "_Attention" in type(ours.grad_fn).__name__
    pull = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    mine, other = torch.autograd.grad(ours, tensors, pull), torch.autograd.grad(theirs, tensors, pull)
    right = torch.autograd.grad(truth, wide, pull.float())
    for one, two, three in zip([ours, *mine], [theirs, *other], [truth, *right], strict=True):
        assert one.dtype == dtype
        if dtype == torch.float32:
            torch.testing.assert_close(one, two, rtol=0, atol=2e-6)
        else:
            error, size = (one.float() - three).norm(), three.norm()
            assert error < 2 * (two.float() - three).norm() + 2e-3 * size
            assert error < 1e-2 * size


def test_weights_are_kept_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not without gradients, in float16, on other devices, or where they would take more memory than is allowed."""
    tensors, mask = inputs(1)
    with torch.no_grad():
        torch.testing.assert_close(attention.attend(*tensors, mask, 0.3), torch_own(tensors, mask), rtol=0, atol=0)

    def kept(dtype: torch.dtype) -> bool:
        tensors, mask = inputs(1, dtype)
        return "_Attention" in type(attention.attend(*tensors, mask, 0.3).grad_fn).__name__

    assert not kept(torch.float16)
    for dtype, width in ((torch.float32, 4), (torch.bfloat16, 2)):
        weights = 2 * 4 * 5 * 9 * width
        for allowed in (weights, weights - 1):
            monkeypatch.setattr(attention, "KEPT", allowed)
            assert kept(dtype) is (allowed == weights)
    monkeypatch.setattr(attention, "KEPT", 1 << 20)
    monkeypatch.setattr(attention, "KEEPING", ("cuda",))
    assert not kept(torch.float32)


@pytest.mark.parametrize("masked", [True, False])
def test_in_bfloat16_scoring_goes_by_products_too(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain causal attention as well; no further from float32 than torch's kernel is."""
    tensors, mask = inputs(1, torch.bfloat16)
    if not masked:
        tensors, mask = [t[:, :, :5] for t in tensors], None
    with torch.no_grad():
        truth = attention.attend(*(t.float() for t in tensors), None if mask is None else mask.float(), 0.3)
        theirs = functional.scaled_dot_product_attention(*tensors, mask, is_causal=mask is None, scale=0.3)
        monkeypatch.setattr(functional, "scaled_dot_product_attention", None)
        ours = attention.attend(*tensors, mask, 0.3)
    assert (ours.float() - truth).norm() < 2 * (theirs.float() - truth).norm() + 2e-3 * truth.norm()


def test_keys_that_no_query_sees_change_nothing() -> None:
    """In bfloat16 on a CPU they bring the number to whole registers; nowhere else are there any."""
    tensors, mask = inputs(1, torch.bfloat16)
    key = tensors[1]
    more = attention.unseen(key.shape[2], key)
    assert (key.shape[2] + more, more) == (32, 23)
    assert attention.unseen(64, key) == attention.unseen(9, key.float()) == attention.unseen(9, key.to("meta")) == 0
    alone = attention.attend(*tensors, mask, 0.3)
    query, wide = tensors[0], [functional.pad(t, (0, 0, 0, more)) for t in tensors[1:]]
    padded = attention.attend(query, *wide, functional.pad(mask, (0, more), value=float("-inf")), 0.3)
    torch.testing.assert_close(padded, alone, rtol=0, atol=2**-6)
    pull = torch.randn(alone.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    for one, two in zip(*(torch.autograd.grad(out, tensors, pull) for out in (padded, alone)), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2**-5)
