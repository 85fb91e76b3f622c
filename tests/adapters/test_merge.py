"""The algebra of the merges, against explicit formulas and against PEFT itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.utils import merge_utils
from torch import nn

from lsat_ray.adapters import lowrank
from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.merge import (
    PARAMETER_MERGES,
    Dare,
    MagnitudePrune,
    Svd,
    Ties,
    delta_arithmetic,
    factor_arithmetic,
    learned_delta,
    peft_linear,
)
from lsat_ray.errors import LsatError

SHAPES = {"base_model.model.one": (12, 7), "base_model.model.two": (5, 9)}  # (in, out)
ENDS = [(1.0, 0.0), (0.0, 1.0)]


def adapter(seed: int, rank: int = 3, alpha: float = 6.0, shift: float = 0.0) -> Adapter:
    g = torch.Generator().manual_seed(seed)
    state = {}
    for name, (inputs, outputs) in SHAPES.items():
        state[f"{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=g) + shift
        state[f"{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=g) + shift
    return Adapter(state, rank, alpha)


def deltas(a: Adapter) -> dict[str, torch.Tensor]:
    return {m: a.delta(m) for m in a.modules()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], tolerance: float = 2e-5) -> bool:
    return one.keys() == two.keys() and all(
        torch.allclose(one[m], two[m], rtol=tolerance, atol=tolerance * 10) for m in one
    )


def plain_sum(adapters: list[Adapter], weights: tuple[float, ...]) -> dict[str, torch.Tensor]:
    return {
        m: torch.stack([w * a.delta(m) for a, w in zip(adapters, weights, strict=True)]).sum(0)
        for m in adapters[0].modules()
    }


seeds = st.integers(0, 2**31)
coefficient = st.floats(-1.5, 1.5, allow_subnormal=False)
few = settings(max_examples=40)


@given(seeds, coefficient, coefficient, st.integers(1, 4), st.integers(1, 4))
@few
def test_delta_arithmetic_is_the_sum_of_the_updates(s: int, u: float, v: float, r1: int, r2: int) -> None:
    pair = [adapter(s, r1, 2.0 * r1), adapter(s + 1, r2, 5.0)]
    merged = delta_arithmetic(pair, (u, v))
    assert merged.rank == r1 + r2
    assert merged.scale == 1.0
    assert equal(deltas(merged), plain_sum(pair, (u, v)))


@given(seeds, coefficient, coefficient)
@few
def test_factor_arithmetic_has_the_cross_terms_of_the_explicit_formula(s: int, u: float, v: float) -> None:
    h, t = adapter(s), adapter(s + 1)
    merged = deltas(factor_arithmetic([h, t], (u, v)))
    for m in h.modules():
        (ah, bh), (at, bt) = h.pair(m), t.pair(m)
        expected = h.scale * (u * u * bh @ ah + v * v * bt @ at + u * v * (bh @ at + bt @ ah))
        assert torch.allclose(merged[m], expected, rtol=1e-4, atol=1e-3)


@given(seeds, st.floats(0.1, 0.9))
@few
def test_averaging_factors_is_not_averaging_updates(s: int, u: float) -> None:
    pair = [adapter(s), adapter(s + 1)]
    assert not equal(deltas(factor_arithmetic(pair, (u, 1 - u))), deltas(delta_arithmetic(pair, (u, 1 - u))), 1e-3)


@given(seeds, coefficient, coefficient)
@few
def test_svd_at_full_rank_is_the_sum_and_below_it_the_best_approximation(s: int, u: float, v: float) -> None:
    pair = [adapter(s, 2), adapter(s + 1, 2)]
    whole = plain_sum(pair, (u, v))
    assert equal(deltas(Svd(rank=4)(pair, (u, v))), whole)
    short = Svd(rank=2)(pair, (u, v))
    assert short.rank == 2
    for m, delta in deltas(short).items():
        values = torch.linalg.svdvals(whole[m])
        error = torch.linalg.matrix_norm(whole[m] - delta)
        assert math.isclose(float(error), float(values[2:].norm()), rel_tol=1e-3, abs_tol=1e-4)


@given(seeds, st.sampled_from(ENDS), st.sampled_from(sorted(PARAMETER_MERGES)))
@few
def test_the_ends_are_the_adapters(s: int, weights: tuple[float, float], name: str) -> None:
    """At density 1 and enough rank every merge gives one adapter back at weights (1, 0) and (0, 1)."""
    merge = {"ties": Ties(1.0), "dare": Dare(1.0), "magnitude-prune": MagnitudePrune(1.0)}.get(
        name, PARAMETER_MERGES[name]
    )
    pair = [adapter(s), adapter(s + 1)]
    given_weights = [w for w in weights for _ in SHAPES] if name == "learned-delta" else weights
    assert equal(deltas(merge(pair, given_weights)), deltas(pair[int(weights[1])]), 1e-4)


@given(seeds, st.floats(0.0, 1.0))
@few
def test_nothing_dropped_is_the_plain_sum(s: int, u: float) -> None:
    pair, weights = [adapter(s), adapter(s + 1)], (u, 1 - u)
    whole = plain_sum(pair, weights)
    assert equal(deltas(Dare(1.0)(pair, weights)), whole, 1e-4)
    assert equal(deltas(MagnitudePrune(1.0)(pair, weights)), whole, 1e-4)
    agreeing = [Adapter({k: v.abs() for k, v in a.state.items()}, a.rank, a.alpha) for a in pair]
    if 0 < u < 1:
        assert equal(deltas(Ties(1.0)(agreeing, weights)), plain_sum(agreeing, weights), 1e-4)


def test_ties_drops_what_disagrees() -> None:
    one = Adapter({"x.lora_A.weight": torch.tensor([[1.0, 1.0]]), "x.lora_B.weight": torch.tensor([[1.0]])}, 1, 1.0)
    two = Adapter({"x.lora_A.weight": torch.tensor([[3.0, -3.0]]), "x.lora_B.weight": torch.tensor([[1.0]])}, 1, 1.0)
    merged = Ties(1.0)([one, two], (0.5, 0.5)).delta("x")
    assert torch.allclose(merged, torch.tensor([[2.0, -3.0]]), atol=1e-6)  # the sum would be [2, -1]


@given(seeds, st.sampled_from([0.2, 0.5, 1.0]))
@few
def test_ties_with_equal_weights_is_pefts_on_the_updates(s: int, density: float) -> None:
    pair = [adapter(s), adapter(s + 1)]
    merged = Ties(density, rank=9)(pair, (0.5, 0.5))
    for m in merged.modules():
        expected = merge_utils.ties([a.delta(m) for a in pair], torch.ones(2), density)
        assert torch.allclose(merged.delta(m), expected, rtol=1e-4, atol=1e-3)


@given(seeds, st.sampled_from([0.1, 0.5]))
@few
def test_pruning_keeps_the_largest_entries(s: int, density: float) -> None:
    one = adapter(s)
    kept = MagnitudePrune(density, rank=9)([one], (1.0,))
    for m in one.modules():
        full, cut = one.delta(m), kept.delta(m)
        stays = cut.abs() > 1e-4
        assert int(stays.sum()) <= int(density * full.numel())
        assert torch.allclose(cut[stays], full[stays], rtol=1e-3, atol=1e-3)
        assert full.abs()[~stays].max() <= full.abs()[stays].min() + 1e-3


def test_dare_is_seeded_and_unbiased() -> None:
    pair, weights = [adapter(1), adapter(2)], (0.3, 0.7)
    first, again, other = (Dare(0.5, seed)(pair, weights) for seed in (0, 0, 1))
    assert all(torch.equal(first.state[k], again.state[k]) for k in first.state)
    assert not equal(deltas(first), deltas(other), 1e-3)
    mean = {m: torch.zeros_like(d) for m, d in deltas(first).items()}
    for seed in range(400):
        for m, d in deltas(Dare(0.5, seed, rank=9)(pair, weights)).items():
            mean[m] += d / 400
    whole = plain_sum(pair, weights)
    spread = max(float(d.abs().max()) for p in pair for d in deltas(p).values())
    assert all((mean[m] - whole[m]).abs().max() < 4.5 * spread / math.sqrt(400) for m in mean)


def test_dare_uses_one_mask_for_every_weight() -> None:
    pair = [adapter(1), adapter(2)]
    one, two, half = (deltas(Dare(0.5, rank=9)(pair, w)) for w in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)))
    assert equal(half, {m: 0.5 * one[m] + 0.5 * two[m] for m in one}, 1e-4)


@given(seeds, st.lists(st.floats(-1, 1.5), min_size=4, max_size=4))
@few
def test_learned_coefficients_weigh_every_module_for_itself(s: int, w: list[float]) -> None:
    pair = [adapter(s), adapter(s + 1, 2)]
    merged = learned_delta(pair, w)
    for i, m in enumerate(pair[0].modules()):
        expected = w[i] * pair[0].delta(m) + w[2 + i] * pair[1].delta(m)
        assert torch.allclose(merged.delta(m), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(PARAMETER_MERGES))
def test_merges_are_deterministic_float32_and_whole(name: str) -> None:
    pair = [adapter(1), adapter(2)]
    weights = (0.4,) * 4 if name == "learned-delta" else (0.4, 0.6)
    one, two = (PARAMETER_MERGES[name](pair, weights) for _ in range(2))
    assert one.state.keys() == pair[0].state.keys()
    for key, value in one.state.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, two.state[key])
        assert value.shape[0 if ".lora_A." in key else 1] == one.rank
    assert torch.equal(pair[0].state["base_model.model.one.lora_A.weight"], adapter(1).state[
        "base_model.model.one.lora_A.weight"
    ])  # fmt: skip


@pytest.mark.parametrize("name", sorted(PARAMETER_MERGES))
def test_bad_arguments_are_named(name: str) -> None:
    merge = PARAMETER_MERGES[name]
    with pytest.raises(LsatError, match="weights"):
        merge([adapter(1), adapter(2)], (0.5, 0.5, 0.5))
    with pytest.raises(LsatError, match="adapters"):
        merge([], ())
    odd = Adapter({k.replace("two", "three"): v for k, v in adapter(2).state.items()}, 3, 6.0)
    with pytest.raises(LsatError, match="different modules"):
        merge([adapter(1), odd], (0.5, 0.5))


def test_factors_of_different_rank_are_refused() -> None:
    for merge in (factor_arithmetic, peft_linear):
        with pytest.raises(LsatError, match="use delta_arithmetic"):
            merge([adapter(1, 2), adapter(2, 3)], (0.5, 0.5))


# -- PEFT -------------------------------------------------------------------------------------------------------------


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Linear(i, o) for i, o in SHAPES.values())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x)


def peft_merge(pair: list[Adapter], weights: tuple[float, ...], kind: str, **options: object) -> dict:
    """Return PEFT's merged updates by our module names."""
    config = LoraConfig(r=pair[0].rank, lora_alpha=int(pair[0].alpha), target_modules=["one", "two"])
    model = get_peft_model(TwoLayers(), config, adapter_name="a0")
    model.add_adapter("a1", config)
    with torch.no_grad():
        for number, each in enumerate(pair):
            for name, parameter in model.named_parameters():
                if f".a{number}.weight" in name:
                    parameter.copy_(each.state[name.replace(f".a{number}.weight", ".weight")])
    model.add_weighted_adapter(["a0", "a1"], list(weights), "merged", combination_type=kind, **options)
    layers = {"base_model.model.one": model.base_model.model.one, "base_model.model.two": model.base_model.model.two}
    return {name: layer.get_delta_weight("merged").detach() for name, layer in layers.items()}


PAIR = [adapter(11), adapter(12)]


@pytest.mark.parametrize("u", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_pefts_linear_with_squared_weights_is_lsat_ta(u: float) -> None:
    squared = (u * u, (1 - u) * (1 - u))
    assert equal(peft_merge(PAIR, squared, "linear"), deltas(factor_arithmetic(PAIR, (u, 1 - u))), 1e-4)


@pytest.mark.parametrize("weights", [(0.3, 0.7), (1.0, 0.0), (-0.5, 0.8)])
def test_pefts_linear_is_peft_linear(weights: tuple[float, float]) -> None:
    assert equal(peft_merge(PAIR, weights, "linear"), deltas(peft_linear(PAIR, weights)), 1e-4)


@pytest.mark.parametrize("weights", [(0.3, 0.7), (1.0, 0.0), (-0.5, 0.8)])
def test_pefts_cat_is_delta_arithmetic(weights: tuple[float, float]) -> None:
    assert equal(peft_merge(PAIR, weights, "cat"), deltas(delta_arithmetic(PAIR, weights)), 1e-4)


def test_pefts_svd_is_ours_up_to_its_scale() -> None:
    """Some releases of PEFT scale the svd family twice; ours must be the right one whatever the installed one does."""
    ours = deltas(Svd(rank=3)(PAIR, (0.3, 0.7)))
    theirs = peft_merge(PAIR, (0.3, 0.7), "svd", svd_rank=3)
    factors = [float((theirs[m] * ours[m]).sum() / (ours[m] ** 2).sum()) for m in ours]
    assert equal({m: theirs[m] / f for (m, f) in zip(ours, factors, strict=True)}, ours, 1e-3)
    assert all(math.isclose(f, 1.0, rel_tol=1e-3) or math.isclose(f, PAIR[0].scale, rel_tol=1e-3) for f in factors)


def test_the_randomised_svd_agrees_with_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(60, 6, generator=g) @ torch.randn(6, 80, generator=g)
    matrix += 0.01 * torch.randn(60, 80, generator=g)
    exact = lowrank.truncated_svd(matrix, 6)
    monkeypatch.setattr(lowrank, "EXACT_BELOW", 8)
    random, again = lowrank.truncated_svd(matrix, 6), lowrank.truncated_svd(matrix, 6)
    assert not torch.equal(exact[1], random[1])
    assert torch.equal(random[1], again[1])
    assert torch.allclose(exact[1] @ exact[0], random[1] @ random[0], atol=1e-3)
