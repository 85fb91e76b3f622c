"""Penalties that are added to the loss: nearness to an earlier adapter, or orthogonality to earlier ones.

All are computed in float32 at least, whatever the parameters' type: under bfloat16 the rounding of the softmax-KL is
larger than its value (methods.md 5b). A group is one whole A or one whole B, flattened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.errors import LsatError

Tensors = Mapping[str, torch.Tensor]
"""LoRA weights by PEFT's file names, as in `Adapter.state`."""


def softmax_kl(current: Tensors, reference: Tensors) -> torch.Tensor:
    """Return the sum over groups of KL(softmax(v) || softmax(v_ref)), PESO's penalty.

    With d = v - v_ref, p = softmax(v), q = softmax(v_ref): KL = E_p[d] - log E_q[exp d], d taken from its mean under
    q, which changes nothing and keeps the digits that a difference of two log-softmaxes would lose.
    """
    return _over_groups(current, reference, _group_kl)


def rank_kl(current: Tensors, reference: Tensors) -> torch.Tensor:
    """Return the sum over ranks of KL(softmax(v) || softmax(v_ref)), v a row of A or a column of B (PESO's control)."""

    def vectors(tensors: Tensors) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{number}": vector
            for name in reference
            for number, vector in enumerate(tensors[name] if ".lora_A." in name else tensors[name].T)
        }

    return softmax_kl(vectors(current), vectors(reference))


def l2(current: Tensors, reference: Tensors) -> torch.Tensor:
    """Return half the squared distance to the reference: PESO's framework with H = I."""
    return _over_groups(current, reference, lambda v, r: 0.5 * (v - r).square().sum())


def orthogonal(current: Tensors, reference: Tensors) -> torch.Tensor:
    """Return the sum of squared entries of A A_ref^T and B^T B_ref (PESO's control; not zero at the reference)."""
    total = _zero(current)
    for name in sorted(current):
        value, past = _widen(current[name]), _widen(reference[name])
        product = value @ past.T if ".lora_A." in name else value.T @ past
        total = total + product.square().sum()
    return total


def input_overlap(current: Tensors, past: Adapter) -> torch.Tensor:
    """Return the sum over modules and earlier adapters of the squared entries of A_t A_i^T (O-LoRA, Wang 2023).

    Args:
        current: the weights that are trained.
        past: the earlier adapters, their A one below the other.
    """
    total = _zero(current)
    for module in past.modules():
        name = f"{module}.lora_A.weight"
        value = _widen(current[name])
        total = total + (value @ past.state[name].to(value).T).square().sum()
    return total


PENALTIES: dict[str, Callable[[Tensors, Tensors], torch.Tensor]] = {
    "softmax-kl": softmax_kl,
    "l2": l2,
    "orthogonal": orthogonal,
    "rank-kl": rank_kl,
}
"""Penalties by `Regulariser.kind`; each is a sum over modules."""


@dataclass(frozen=True)
class Penalty:
    """A spec's weighted penalty on live parameters.

    Its gradient is computed once per step from copies of the whole weights and added to the gradient of the loss as
    that arrives, so that it does not matter how an engine splits weights (under ZeRO-3 they are not whole when the loss
    is taken). Every rank holds the same weights and computes the same gradient, and every engine averages gradients
    over ranks: the penalty counts once, whatever their number.
    """

    parameters: Callable[[], Mapping[str, torch.nn.Parameter]]
    """Returns the training slot's LoRA weights."""
    value: Callable[[Tensors], torch.Tensor]

    def gradient(self) -> tuple[float, dict[str, torch.Tensor]]:
        """Return the penalty and its gradient by name; needs whole weights, touches no `.grad`."""
        copies = {k: p.detach().clone().requires_grad_() for k, p in self.parameters().items()}
        value = self.value(copies)
        found = torch.autograd.grad(value, list(copies.values()), allow_unused=True)
        return float(value.detach()), {k: g for k, g in zip(copies, found, strict=True) if g is not None}

    def measure(self) -> tuple[float, float]:
        """Return the penalty and the norm of its gradient, to be logged."""
        value, gradient = self.gradient()
        return value, float(torch.stack([g.float().norm() for g in gradient.values()]).norm())

    @contextmanager
    def added(self, gradient: Mapping[str, torch.Tensor], share: float) -> Iterator[None]:
        """Add `share` times a gradient in every backward pass of the block.

        Args:
            gradient: from `gradient`.
            share: one over the micro-batches of a step, whose gradients add up.
        """

        def adds(extra: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
            return lambda found: found + extra.to(found)

        trained = {k: p for k, p in self.parameters().items() if p.requires_grad and k in gradient}
        handles = [p.register_hook(adds(share * gradient[k])) for k, p in trained.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def of(
    spec: AdapterSpec,
    parameters: Callable[[], Mapping[str, torch.nn.Parameter]],
    initial: Adapter | None,
    past: Adapter | None,
) -> Penalty | None:
    """Return the penalty that a spec asks for, or None.

    Args:
        spec: its regulariser, and `frozen` of kind `orthogonal` (O-LoRA).
        parameters: returns the training slot's weights.
        initial: the reference of the regulariser.
        past: the frozen earlier adapters, concatenated.

    Raises:
        LsatError: when a regulariser has no initial adapter to refer to.
    """
    terms: list[Callable[[Tensors], torch.Tensor]] = []
    if spec.regulariser:
        if initial is None:
            raise LsatError("regulariser: it refers to the initial adapter, and this spec starts from none")
        if spec.regulariser.kind not in PENALTIES:
            raise LsatError(f"regulariser: {spec.regulariser.kind} is of the generative task alone; take another")
        terms.append(_proximity(spec, initial))
    if spec.frozen and spec.frozen.kind == "orthogonal":
        if past is None:
            raise LsatError("frozen: the O-LoRA penalty needs the earlier adapters")
        strength, earlier = spec.frozen.weight, past
        terms.append(lambda current: strength * input_overlap(current, earlier))
    return Penalty(parameters, lambda current: _total(terms, current)) if terms else None


def _proximity(spec: AdapterSpec, initial: Adapter) -> Callable[[Tensors], torch.Tensor]:
    regulariser = spec.regulariser
    assert regulariser is not None
    over = len(initial.modules()) if regulariser.reduction == "mean" else 1
    on_device: dict[str, torch.Tensor] = {}

    def value(current: Tensors) -> torch.Tensor:
        for name, tensor in initial.state.items():
            if name not in on_device or on_device[name].device != current[name].device:
                on_device[name] = tensor.detach().clone().to(current[name].device)
        return regulariser.weight / over * PENALTIES[regulariser.kind](current, on_device)

    return value


def _total(terms: Sequence[Callable[[Tensors], torch.Tensor]], current: Tensors) -> torch.Tensor:
    return torch.stack([term(current) for term in terms]).sum()


def _group_kl(value: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    q = torch.softmax(reference.flatten(), dim=0)
    moved = (value - reference).flatten()
    moved = moved - (q * moved).sum().detach()
    p = torch.softmax(value.flatten(), dim=0)
    return (p * moved).sum() - torch.log1p((q * torch.expm1(moved)).sum())


def _over_groups(
    current: Tensors, reference: Tensors, group: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    total = _zero(current)
    for name in sorted(reference):
        value = _widen(current[name])
        total = total + group(value, reference[name].to(value))
    return total


def _zero(current: Tensors) -> torch.Tensor:
    return _widen(next(iter(current.values()))).new_zeros(())


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    """Return float32 of anything narrower."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
