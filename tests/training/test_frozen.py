"""The cumulative family: what is worn, what is trained, what is published; and penalties inside the step loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from workbench import Workbench, make_workbench, randomise

from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.merge import delta_arithmetic
from lsat_ray.adapters.spec import AdapterSpec, Frozen, Regulariser
from lsat_ray.config import EngineConfig, LoraSettings, Recipe
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.scoring.score import score
from lsat_ray.training import penalty
from lsat_ray.training.fit import Fitted, TorchEngine, fit
from lsat_ray.training.frozen import SLOT, Beside, _input_moments, beside, design, earlier, extended, normalised, own

SETTINGS = EngineConfig(kind="torch")
RECIPE = Recipe(lr=5e-3, batch_size=16, epochs=2)
KINDS = ["sum", "sd", "orthogonal", "inf"]


@pytest.fixture
def past(bench: Workbench) -> list[Adapter]:
    made = []
    for seed in (1, 2):
        randomise(bench.model, seed)
        made.append(bench.model.snapshot())
    each = {m: torch.cat([a.pair(m)[0] for a in made]) for m in made[0].modules()}
    memory = {m: torch.linalg.qr(a.T)[0].T.contiguous() for m, a in each.items()}  # as if these had been their inputs
    return [replace(a, memory=memory) for a in made]


def run(bench: Workbench, spec: AdapterSpec, frozen: list[Adapter], initial: Adapter | None = None) -> Fitted:
    return fit(spec, bench.model, bench.train, bench.validation, TorchEngine(), SETTINGS, initial, frozen=frozen)


def link(bench: Workbench, kind: str, count: int = 2, **changes: Any) -> AdapterSpec:
    parents = tuple(bench.spec(seed=100 + i) for i in range(count))
    return bench.spec(frozen=Frozen(parents, kind), recipe=RECIPE, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_sum_scores_as_the_model_did_in_training(
    bench: Workbench, past: list[Adapter], kind: str
) -> None:
    fitted = run(bench, link(bench, kind), past)
    assert fitted.adapter.rank == 12
    assert fitted.adapter.scale == bench.model.lora.alpha / bench.model.lora.rank
    assert fitted.adapter.state.keys() == past[0].state.keys()
    served = score(bench.model, fitted.adapter, bench.validation)
    np.testing.assert_allclose(served, fitted.margin, rtol=1e-4, atol=2e-5)
    trained = own(fitted.adapter, 4)
    assert any(v.abs().max() > 0 for k, v in trained.state.items() if ".lora_B." in k)


@pytest.mark.parametrize("kind", KINDS)
def test_the_earlier_parts_stay_as_they_were(bench: Workbench, past: list[Adapter], kind: str) -> None:
    whole = run(bench, link(bench, kind), past).adapter
    parts = [normalised(a) for a in past] if kind in ("sum", "sd") else past
    for module in whole.modules():
        a, b = whole.pair(module)
        assert torch.equal(a[:8], torch.cat([p.pair(module)[0] for p in parts]))
        kept = torch.cat([p.pair(module)[1] for p in parts], dim=1)
        if kind == "sd":  # one learned number for every earlier adapter and module
            ratio = (b[:, :8] / kept).reshape(-1, 2, 4)
            assert (ratio.amax((0, 2)) - ratio.amin((0, 2))).abs().max() < 1e-4
            assert (ratio.mean((0, 2)) - 1).abs().max() > 1e-3
        else:
            assert torch.equal(b[:, :8], kept)


def test_the_model_is_as_before_after_a_fit(bench: Workbench, past: list[Adapter]) -> None:
    before = run(bench, bench.spec(), [])
    names = {n for n, _ in bench.model.named_parameters()}

    def hooks() -> list[int]:
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in bench.model.peft.modules()]

    own = hooks()  # of the per-sample gate, which every layer keeps
    for kind in KINDS:
        run(bench, link(bench, kind), past)
        assert SLOT not in bench.model.peft.peft_config
        assert hooks() == own
    bench.model.reset(0)
    assert {n for n, p in bench.model.named_parameters() if p.requires_grad} == {
        n for n in names if ".slot." in n and "lora" in n
    }
    after = run(bench, bench.spec(), [])
    assert all(torch.equal(before.adapter.state[k], v) for k, v in after.adapter.state.items())


def test_a_failed_fit_leaves_nothing_behind(bench: Workbench, past: list[Adapter]) -> None:
    before = run(bench, bench.spec(), [])
    broken = [Adapter({k: v * float("nan") for k, v in a.state.items()}, a.rank, a.alpha) for a in past]
    with pytest.raises(LsatError, match="loss is nan"):
        run(bench, link(bench, "sd"), broken)
    after = run(bench, bench.spec(), [])
    assert all(torch.equal(before.adapter.state[k], v) for k, v in after.adapter.state.items())


def test_the_next_link_finds_the_trained_part_bit_for_bit(bench: Workbench, past: list[Adapter]) -> None:
    parents = past[:1]
    one = run(bench, link(bench, "sum", 1), parents).adapter
    two = run(bench, link(bench, "sum", 2), [past[0], one]).adapter
    assert two.rank == 12
    middle = normalised(own(one, 4))
    for module in two.modules():
        assert torch.equal(two.pair(module)[0][4:8], middle.pair(module)[0])
        assert torch.equal(two.pair(module)[1][:, 4:8], middle.pair(module)[1])
    assert own(past[0], 4) is past[0]


def test_inheriting_starts_from_the_last_links_own_part(bench: Workbench, past: list[Adapter]) -> None:
    previous = run(bench, link(bench, "sum", 1), past[:1])
    spec = link(bench, "sum", 1, init=bench.spec(seed=9), regulariser=Regulariser("l2", 1e6))
    held = run(bench, spec, [previous.adapter], previous.adapter)
    start, end = own(previous.adapter, 4), own(held.adapter, 4)
    assert all((start.state[k] - end.state[k]).abs().max() < 0.02 for k in start.state)
    assert held.penalty


@pytest.mark.parametrize("kind", ["sum", "sd", "orthogonal"])
def test_every_link_learns_from_directions_of_its_own(bench: Workbench, past: list[Adapter], kind: str) -> None:
    """From one A for all, O-LoRA's penalty would begin at its largest and the sum look at r directions only."""
    still = Recipe(lr=1e-12, batch_size=16, epochs=1)
    starts = []
    for period in (2, 3):
        spec = replace(
            link(bench, kind), recipe=still, train=(Slice(period, "train"),), validation=(Slice(period, "validation"),)
        )
        starts.append(own(run(bench, spec, past).adapter, 4))
    plain = run(bench, bench.spec(recipe=still), []).adapter
    for module in plain.modules():
        found = [a.pair(module)[0] for a in (plain, *starts)]
        cosines = torch.corrcoef(torch.stack([a.flatten() for a in found]))
        assert (cosines - torch.eye(3)).abs().max() < 0.5
    again = run(bench, replace(spec, seed=1), past).adapter
    assert all(torch.equal(v, again.state[k]) for k, v in run(bench, spec, past).adapter.state.items())


def test_plain_adapters_of_a_seed_share_their_start(bench: Workbench) -> None:
    """LSAT-TA averages A entry by entry: long- and short-term adapters must speak of the same directions."""
    one, two = bench.spec(), bench.spec(train=(Slice(3, "train"),), validation=(Slice(3, "validation"),))
    assert one.start_seed == two.start_seed == 1


def test_normalised_parts_have_norm_one_and_zero_stays_zero() -> None:
    state = {"x.lora_A.weight": torch.randn(4, 6), "x.lora_B.weight": torch.zeros(5, 4)}
    unit = normalised(Adapter(state, 4, 8.0))
    assert torch.isclose(unit.state["x.lora_A.weight"].norm(), torch.tensor(1.0))
    assert unit.state["x.lora_B.weight"].abs().max() == 0


def test_the_sum_is_delta_arithmetic(bench: Workbench, past: list[Adapter]) -> None:
    found = earlier(link(bench, "orthogonal"), past)
    exact = delta_arithmetic(past, (1.0, 1.0))
    for module in found.modules():
        torch.testing.assert_close(found.delta(module), exact.delta(module), rtol=1e-5, atol=1e-6)


# -- InfLoRA ----------------------------------------------------------------------------------------------------------


def test_inf_lora_trains_b_alone_on_a_fixed_orthogonal_a(bench: Workbench, past: list[Adapter]) -> None:
    trained = own(run(bench, link(bench, "inf"), past).adapter, 4)
    with beside(bench.model, link(bench, "inf"), past) as extra:
        assert extra is not None
        bench.model.reset(1)
        extra.start(bench.train)
        assert set(bench.model.trainable()) == {k for k in past[0].state if ".lora_B." in k}
        designed = bench.model.snapshot()
    for module in trained.modules():
        a, b = trained.pair(module)
        torch.testing.assert_close(a, designed.pair(module)[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a @ a.T, torch.eye(4), rtol=0, atol=1e-5)
        assert b.abs().max() > 0
        for earlier_adapter in past:
            assert (a @ earlier_adapter.pair(module)[0].T).abs().max() < 1e-4


def test_the_design_depends_on_the_spec_alone(bench: Workbench, past: list[Adapter], tiny_backbone_folder: Any) -> None:
    """Not on the budget of tokens, packing, checkpointing, or on which forward pass the model has."""
    spec = link(bench, "inf")
    eager = bench.experiment.model_copy(
        update={"backbone": bench.experiment.backbone.model_copy(update={"attention": "eager"})}
    )
    other = make_workbench(eager, bench.periods, tiny_backbone_folder, checkpointing=True)
    packed = make_workbench(bench.experiment, bench.periods, tiny_backbone_folder)
    packed.model.packing = True
    few = SETTINGS.model_copy(update={"batch_tokens": 64})
    starts = []
    for place, settings in ((bench, SETTINGS), (bench, few), (other, SETTINGS), (packed, SETTINGS)):
        rows = (place.train, place.validation, TorchEngine(), settings)
        starts.append(own(fit(spec, place.model, *rows, frozen=past).adapter, 4))
    for module in starts[0].modules():
        a = starts[0].pair(module)[0]
        for start in starts[1:]:
            torch.testing.assert_close(start.pair(module)[0], a, rtol=0, atol=2e-5)


def test_the_moments_count_every_token_once_and_no_padding(bench: Workbench) -> None:
    """The first layer's inputs are known: normed embeddings of prefix and prompt."""
    bench.model.reset(1)
    moments = _input_moments(bench.model, bench.train)
    decoder, total = bench.backbone.model.get_decoder(), 0.0
    sequences = [
        torch.from_numpy(np.concatenate([bench.train.prefix, bench.train.tokens[a:b]]).astype(np.int64))
        for a, b in zip(bench.train.offsets, bench.train.offsets[1:], strict=False)
    ]
    for tokens in sequences:
        x = decoder.layers[0].input_layernorm(decoder.embed_tokens(tokens)).double()
        total = total + x.T @ x
    name = next(n for n in moments if "layers.0.self_attn.q_proj" in n)
    assert moments[name].dtype == torch.float64
    torch.testing.assert_close(moments[name], total, rtol=1e-5, atol=1e-6 * float(total.max()))


def test_the_design_takes_the_main_free_directions() -> None:
    moment = torch.diag(torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 0.5]))
    none = design(moment, torch.empty(0, 6), 2)
    torch.testing.assert_close(none, torch.eye(6)[:2])
    torch.testing.assert_close(design(moment, torch.eye(6)[:2], 2), torch.eye(6)[2:4])


def test_the_memory_holds_95_percent_of_the_energy_and_leaves_room_for_the_next_a() -> None:
    moment = torch.diag(torch.tensor([90.0, 4.0, 3.0, 2.0, 0.7, 0.3]))
    one = extended(None, moment, 2)
    torch.testing.assert_close(one, torch.eye(6)[:3])  # 90, 94, 97 of 100
    torch.testing.assert_close(extended(one, moment, 2), one)
    turned = torch.diag(torch.tensor([1.0, 1.0, 1.0, 3.0, 94.0, 0.0]))
    torch.testing.assert_close(extended(one, turned, 2), torch.eye(6)[[0, 1, 2, 4]])  # 3, then 97
    flat = torch.eye(6)
    torch.testing.assert_close(extended(one, flat, 2)[:3], one)
    assert extended(None, flat, 2).shape == extended(one, flat, 2).shape == (4, 6), "two of six directions stay free"


def test_what_a_link_of_inf_lora_adds_hardly_touches_the_inputs_of_the_links_before(bench: Workbench) -> None:
    """Its memory is of inputs, as published: the row spaces of the earlier A alone leave most of their energy open."""
    first = bench.spec(frozen=Frozen((), "inf"), recipe=RECIPE)
    second = replace(first, frozen=Frozen((first,), "inf"), train=(Slice(3, "train"),))
    one = run(bench, first, []).adapter
    with beside(bench.model, first, []):
        bench.model.restore(one.state)
        seen = _input_moments(bench.model, bench.train)
    two = run(bench, second, [one]).adapter
    assert (one.rank, two.rank) == (4, 8)
    for module in one.modules():
        m, a = one.memory[module], own(two, 4).pair(module)[0]
        torch.testing.assert_close(m @ m.T, torch.eye(len(m)), rtol=0, atol=1e-5)
        assert (a @ m.T).abs().max() < 1e-4
        left = 1 - float((m.double() @ seen[module] @ m.double().T).trace() / seen[module].trace())
        assert left <= 0.05 or len(m) == m.shape[1] - 4
        assert float((a.double() @ seen[module] @ a.double().T).trace()) <= left * float(seen[module].trace()) * 1.001
        assert torch.equal(two.memory[module][: len(m)], m)


# -- penalties in the loop --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(penalty.PENALTIES))
def test_a_penalty_changes_training_and_is_logged(bench: Workbench, past: list[Adapter], kind: str) -> None:
    plain = run(bench, bench.spec(init=bench.spec(seed=9), recipe=RECIPE), [], past[0])
    regulariser = Regulariser(kind, 50.0)  # type: ignore[arg-type]
    spec = bench.spec(init=bench.spec(seed=9), recipe=RECIPE, regulariser=regulariser)
    held = run(bench, spec, [], past[0])
    assert plain.penalty == []
    assert [step for step, *_ in held.penalty] == [step for step, *_ in held.history]
    assert all(value > 0 and norm > 0 for _, value, norm in held.penalty)
    value = penalty.PENALTIES[kind]
    assert value(held.adapter.state, past[0].state) < value(plain.adapter.state, past[0].state)


def test_lambda_zero_is_no_penalty(bench: Workbench, past: list[Adapter]) -> None:
    plain = run(bench, bench.spec(init=bench.spec(seed=9)), [], past[0])
    zero = run(bench, bench.spec(init=bench.spec(seed=9), regulariser=Regulariser("softmax-kl", 0.0)), [], past[0])
    assert all(torch.equal(plain.adapter.state[k], v) for k, v in zero.adapter.state.items())


def test_a_penalty_does_not_grow_with_the_micro_batches(bench: Workbench, past: list[Adapter]) -> None:
    spec = bench.spec(init=bench.spec(seed=9), recipe=RECIPE, regulariser=Regulariser("l2", 1.0))
    args = (spec, bench.model, bench.train, bench.validation, TorchEngine())
    one, three = (fit(*args, SETTINGS.model_copy(update={"micro_batches": n}), past[0]) for n in (1, 3))
    for name, value in one.adapter.state.items():
        torch.testing.assert_close(three.adapter.state[name], value, rtol=2e-3, atol=5e-4)


def test_o_lora_keeps_a_away_from_the_earlier_inputs(bench: Workbench, past: list[Adapter]) -> None:
    parents = tuple(bench.spec(seed=100 + i) for i in range(2))
    free, strict = (bench.spec(frozen=Frozen(parents, "orthogonal", w), recipe=RECIPE) for w in (0.0, 1.0))
    both = earlier(strict, past)
    loose, held = (run(bench, spec, past) for spec in (free, strict))
    overlaps = [float(penalty.input_overlap(own(f.adapter, 4).state, both)) for f in (loose, held)]
    assert overlaps[1] < 0.9 * overlaps[0]
    assert held.penalty[0][1] > 0
    assert loose.penalty[0][1:] == (0.0, 0.0)


# -- errors -----------------------------------------------------------------------------------------------------------


def test_errors_name_the_trouble(bench: Workbench, past: list[Adapter]) -> None:
    with pytest.raises(LsatError, match="freezes 2 adapters, 1 given"):
        run(bench, link(bench, "sum"), past[:1])
    with pytest.raises(LsatError, match="keep_old"):
        Beside(bench.model, link(bench, "sum", keep_old=True), past)
    with pytest.raises(LsatError, match="no memory"):
        Beside(bench.model, link(bench, "inf"), [Adapter(a.state, 4, 8.0) for a in past])
    with pytest.raises(LsatError, match="at least one"):
        Beside(bench.model, link(bench, "sum", 0), [])
    with pytest.raises(LsatError, match="InfLoRA"):
        Beside(bench.model, link(bench, "inf", init=bench.spec(seed=3)), past)
    with pytest.raises(LsatError, match="scale"):
        earlier(link(bench, "sum"), [past[0], Adapter(past[1].state, 4, 4.0)])


def test_all_linear_modules_can_be_adapted(tiny_experiment: Any, tiny_periods: Any, tiny_backbone_folder: Any) -> None:
    """The capacity study's `all linear` is a config: seven names."""
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    lora = LoraSettings(rank=1, alpha=2, targets=targets)
    bench = make_workbench(tiny_experiment, tiny_periods, tiny_backbone_folder, lora=lora)
    first = bench.spec(frozen=Frozen((), "inf"), recipe=Recipe(batch_size=16, epochs=1))
    fitted = run(bench, first, [])
    assert len(fitted.adapter.modules()) == 7 * tiny_experiment.backbone.nano.layers
    whole = run(bench, bench.spec(frozen=Frozen((first,), "inf"), recipe=RECIPE), [fitted.adapter])
    np.testing.assert_allclose(score(bench.model, whole.adapter, bench.validation), whole.margin, rtol=1e-4, atol=2e-5)
