"""Products with frozen bfloat16 weights on a CPU, from copies of the weights in the order in which the kernel reads.

A product of oneDNN puts its right factor in blocks first, every time. A frozen weight needs that only once: products
take a tenth to a quarter less time, with the same bits.
"""

from __future__ import annotations

from functools import cached_property
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

HELD = 4 << 30
"""Bytes of copies that a process holds at most; further weights are multiplied as they are."""


class Reordered:
    """Copies of one weight [out, in], each made when it is first used."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight, self._version, self._place = weight, weight._version, weight.data_ptr()
        self.size = 2 * weight.nbytes

    def valid(self, weight: torch.Tensor) -> bool:
        """Return whether this is of the weight as it is now."""
        return (weight._version, weight.data_ptr()) == (self._version, self._place)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return `x W' + bias`, x [T, in]."""
        return torch.ops.mkldnn._linear_pointwise(x, self._ahead, bias, "none", [], "")  # type: ignore[no-any-return]

    def backward(self, grad: torch.Tensor, total: torch.Tensor | None) -> torch.Tensor:
        """Return `grad W`, grad [T, out], added to `total` [T, in] if there is one."""
        if total is None:
            return torch.ops.mkldnn._linear_pointwise(grad, self._back, None, "none", [], "")  # type: ignore[no-any-return]
        return torch.ops.mkldnn._linear_pointwise.binary(grad, total, self._back, None, "add")  # type: ignore[no-any-return]

    @cached_property
    def _ahead(self) -> torch.Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(self._weight)  # type: ignore[no-any-return]

    @cached_property
    def _back(self) -> torch.Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(self._weight.t().contiguous())  # type: ignore[no-any-return]


_held: WeakKeyDictionary[nn.Module, Reordered | None] = WeakKeyDictionary()
_turn = Lock()
"""Held by a thread that looks one up: another one's new entry would end its count of what is held."""


def reordered(module: Any) -> Reordered | None:
    """Return the copies of a frozen linear layer's weight; None where products take the weight as it is."""
    weight = module.weight
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    with _turn:
        found = _held.get(module)
        if module not in _held or (found and not found.valid(weight)):
            held = sum(copies.size for other, copies in _held.items() if copies and other is not module)
            copies = Reordered(weight.detach())
            found = copies if held + copies.size <= HELD else None
            _held[module] = found
    return found
