"""The penalties: values against their definitions, gradients, precision, and what a spec makes of them."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.spec import AdapterSpec, Frozen, Regulariser
from lsat_ray.config import LoraSettings, PromptConfig, Recipe
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.training import penalty

SHAPES = {"q": (6, 5), "v": (6, 4)}  # (in, out)
RANK = 2


def weights(seed: int, dtype: torch.dtype = torch.float64, scale: float = 0.3) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    state = {}
    for name, (inputs, outputs) in SHAPES.items():
        state[f"{name}.lora_A.weight"] = scale * torch.randn(RANK, inputs, generator=g, dtype=torch.float64)
        state[f"{name}.lora_B.weight"] = scale * torch.randn(outputs, RANK, generator=g, dtype=torch.float64)
    return {k: v.to(dtype) for k, v in state.items()}


def gradcheck(function: object, current: dict[str, torch.Tensor]) -> bool:
    names = sorted(current)

    def on_list(*values: torch.Tensor) -> torch.Tensor:
        return function(dict(zip(names, values, strict=True)))  # type: ignore[operator]

    return torch.autograd.gradcheck(on_list, [current[n].clone().requires_grad_() for n in names])


@pytest.mark.parametrize("kind", sorted(penalty.PENALTIES))
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_those_of_the_value(kind: str, seed: int) -> None:
    reference = weights(seed + 10)
    assert gradcheck(lambda c: penalty.PENALTIES[kind](c, reference), weights(seed))


def test_the_gradient_of_the_o_lora_penalty() -> None:
    past = Adapter(weights(5), RANK, 4.0)
    assert gradcheck(lambda c: penalty.input_overlap(c, past), weights(0))


@given(st.integers(0, 10**6))
@settings(max_examples=25)
def test_softmax_kl_is_its_definition(seed: int) -> None:
    current, reference = weights(seed), weights(seed + 1)
    expected = sum(
        functional.kl_div(
            reference[n].flatten().log_softmax(0), current[n].flatten().log_softmax(0), reduction="sum", log_target=True
        )
        for n in current
    )
    assert torch.allclose(penalty.softmax_kl(current, reference), torch.as_tensor(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["softmax-kl", "l2"])
def test_nearness_is_zero_with_zero_gradient_at_the_reference(kind: str) -> None:
    current = {k: v.requires_grad_() for k, v in weights(3, torch.float32).items()}
    value = penalty.PENALTIES[kind](current, {k: v.detach().clone() for k, v in current.items()})
    assert float(value.detach()) == 0.0
    for gradient in torch.autograd.grad(value, list(current.values())):
        assert gradient.abs().max() < 1e-8


@pytest.mark.parametrize("kind", sorted(penalty.PENALTIES))
def test_penalties_are_not_negative_and_grow_with_the_distance(kind: str) -> None:
    reference = weights(1)
    step = weights(2)
    values = [
        float(penalty.PENALTIES[kind]({k: (0 if kind == "orthogonal" else 1) * r + s * step[k]
                                       for k, r in reference.items()}, reference))
        for s in (0.1, 1.0, 3.0)
    ]  # fmt: skip
    assert 0 < values[0] < values[1] < values[2]


def test_small_moves_cost_half_their_variance() -> None:
    """PESO's approximation KL = 1/2 Var_p(d); float32 keeps it where a difference of log-softmaxes does not."""
    g = torch.Generator().manual_seed(0)
    reference = {"q.lora_A.weight": 0.02 * torch.randn(8, 4096, generator=g)}
    move = 1e-4 * torch.randn(8, 4096, generator=g)
    current = {"q.lora_A.weight": reference["q.lora_A.weight"] + move}
    exact = float(penalty.softmax_kl({k: v.double() for k, v in current.items()}, reference))
    got = float(penalty.softmax_kl(current, reference))
    assert math.isclose(exact, 0.5 * float(move.double().var()), rel_tol=0.05)
    assert math.isclose(got, exact, rel_tol=0.02)


def test_bfloat16_weights_are_widened_first() -> None:
    current = weights(1, torch.bfloat16)
    reference = weights(2, torch.bfloat16)
    for kind, function in penalty.PENALTIES.items():
        value = function(current, reference)
        wide = function({k: v.float() for k, v in current.items()}, {k: v.float() for k, v in reference.items()})
        assert value.dtype == torch.float32, kind
        assert torch.equal(value, wide)


def test_values_by_hand() -> None:
    current = {"q.lora_A.weight": torch.tensor([[1.0, 2.0]]), "q.lora_B.weight": torch.tensor([[3.0]])}
    reference = {"q.lora_A.weight": torch.tensor([[1.0, 0.0]]), "q.lora_B.weight": torch.tensor([[2.0]])}
    assert float(penalty.l2(current, reference)) == 0.5 * (4 + 1)
    assert float(penalty.orthogonal(current, reference)) == 1.0**2 + 6.0**2
    assert float(penalty.input_overlap(current, Adapter(reference, 1, 1.0))) == 1.0


# -- what a spec asks for ---------------------------------------------------------------------------------------------

SPEC = AdapterSpec(
    backbone="b",
    data="d",
    train=(Slice(1, "train"),),
    validation=(Slice(1, "validation"),),
    prompt=PromptConfig(),
    lora=LoraSettings(rank=RANK),
    recipe=Recipe(),
    seed=0,
)


def built(spec: AdapterSpec, initial: Adapter | None, past: Adapter | None) -> penalty.Penalty | None:
    live = {k: nn.Parameter(v) for k, v in weights(7, torch.float32).items()}
    return penalty.of(spec, lambda: live, initial, past)


def test_no_regulariser_no_penalty() -> None:
    assert built(SPEC, None, None) is None
    assert built(replace(SPEC, frozen=Frozen((SPEC,), "sum")), None, Adapter(weights(1), RANK, 4.0)) is None


@pytest.mark.parametrize("kind", sorted(penalty.PENALTIES))
def test_lambda_and_the_reduction_over_modules(kind: str) -> None:
    initial = Adapter(weights(1, torch.float32), RANK, 4.0)
    one, total, mean = (
        built(replace(SPEC, init=SPEC, regulariser=Regulariser(kind, w, r)), initial, None)  # type: ignore[arg-type]
        for w, r in ((1.0, "sum"), (3.0, "sum"), (3.0, "mean"))
    )
    assert one and total and mean
    assert math.isclose(total.measure()[0], 3 * one.measure()[0], rel_tol=1e-6)
    assert math.isclose(mean.measure()[0], 3 * one.measure()[0] / len(SHAPES), rel_tol=1e-6)


def test_o_lora_comes_from_the_frozen_adapters() -> None:
    past = Adapter(weights(1, torch.float32), RANK, 4.0)
    spec = replace(SPEC, frozen=Frozen((SPEC,), "orthogonal", weight=0.5))
    found = built(spec, None, past)
    assert found
    assert math.isclose(
        found.measure()[0], 0.5 * float(penalty.input_overlap(found.parameters(), past).detach()), rel_tol=1e-6
    )


def test_the_measure_is_value_and_gradient_norm_and_leaves_no_trace() -> None:
    initial = Adapter(weights(1, torch.float32), RANK, 4.0)
    found = built(replace(SPEC, init=SPEC, regulariser=Regulariser("l2", 2.0)), initial, None)
    assert found
    value, norm = found.measure()
    distance = math.sqrt(
        sum(float((p.detach() - initial.state[k]).square().sum()) for k, p in found.parameters().items())
    )
    assert math.isclose(value, distance**2, rel_tol=1e-5)
    assert math.isclose(norm, 2 * distance, rel_tol=1e-5)
    assert all(p.grad is None for p in found.parameters().values())


def test_a_regulariser_needs_its_reference() -> None:
    with pytest.raises(LsatError, match="initial adapter"):
        built(replace(SPEC, regulariser=Regulariser("l2", 1.0)), None, None)


def test_the_added_gradient_is_that_of_the_sum() -> None:
    """Loss plus penalty in one graph, against the penalty added to the loss's gradient in two passes."""
    initial = Adapter(weights(1, torch.float32), RANK, 4.0)
    found = built(replace(SPEC, init=SPEC, regulariser=Regulariser("softmax-kl", 5.0)), initial, None)
    assert found
    live = found.parameters()

    def loss() -> torch.Tensor:
        return torch.stack([p.pow(3).sum() for p in live.values()]).sum()

    expected = torch.autograd.grad(loss() + found.value(live), list(live.values()))
    _, gradient = found.gradient()
    with found.added(gradient, 0.5):
        (0.25 * loss()).backward()
        (0.75 * loss()).backward()
    for p, wanted in zip(live.values(), expected, strict=True):
        torch.testing.assert_close(p.grad, wanted)
        p.grad = None
    loss().backward()  # outside the block the hooks are gone
    for p, plain in zip(live.values(), torch.autograd.grad(loss(), list(live.values())), strict=True):
        torch.testing.assert_close(p.grad, plain)
