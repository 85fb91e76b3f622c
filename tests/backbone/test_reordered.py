"""Products from copies of a weight in the kernel's own order give the same bits, of the weight as it is now."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from lsat_ray.backbone import reordered
from lsat_ray.backbone.lean import linears

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


def layer(size: tuple[int, int] = (48, 40), dtype: torch.dtype = torch.bfloat16, bias: bool = False) -> nn.Linear:
    """Return a frozen layer from size[1] to size[0] features."""
    torch.manual_seed(0)
    return nn.Linear(size[1], size[0], bias=bias, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 33])
def test_the_bits_are_those_of_the_plain_product(tokens: int, bias: bool) -> None:
    """Forwards, backwards, and backwards onto what another layer has left, for a view as for a whole tensor."""
    made = layer(bias=bias)
    copies = reordered.reordered(made)
    assert copies is not None
    x = torch.randn(tokens, 80).bfloat16()[:, ::2]
    grad, total = torch.randn(tokens, 48).bfloat16(), torch.randn(tokens, 40).bfloat16()
    assert torch.equal(copies.forward(x, made.bias), made(x))
    assert torch.equal(copies.backward(grad, None), grad @ made.weight)
    assert torch.equal(copies.backward(grad, total.clone()), total.clone().addmm_(grad, made.weight))


def test_a_changed_weight_has_new_copies() -> None:
    """A weight that was written to, or replaced, is multiplied as it is now."""
    made, x = layer(), torch.randn(3, 40).bfloat16()
    before = linears([made], x)[0]
    made.weight.mul_(2.0)
    assert torch.equal(linears([made], x)[0], 2 * before)
    made.weight = nn.Parameter(torch.zeros_like(made.weight), requires_grad=False)
    assert not linears([made], x)[0].any()


def test_float32_is_multiplied_as_it_is_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copies for another type, and none above what a process may hold."""
    assert reordered.reordered(layer(dtype=torch.float32)) is None
    monkeypatch.setattr(reordered, "_held", type(reordered._held)())
    monkeypatch.setattr(reordered, "HELD", 2 * 4 * 48 * 40)
    made = [layer() for _ in range(3)]
    assert [reordered.reordered(m) is not None for m in made] == [True, True, False]
    assert reordered.reordered(made[0]) is not None
    x = torch.randn(3, 40).bfloat16()
    assert torch.equal(linears([made[2]], x)[0], made[2](x))


def test_threads_may_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one adds while another counts what is held ends neither."""
    monkeypatch.setattr(reordered, "_held", type(reordered._held)())
    made = [layer((4, 4)) for _ in range(1000)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(reordered.reordered, made + made))
    finally:
        sys.setswitchinterval(switch)
