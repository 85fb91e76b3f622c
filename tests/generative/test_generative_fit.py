"""Fitting: it learns, repeats itself, carries the codes' rows, and every rule trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scrambled import scramble

from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.spec import Frozen, Regulariser
from lsat_ray.backbone.dropout import Dropout
from lsat_ray.config import EngineConfig, LoraSettings, Recipe
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.generative.backbone import CodeBackbone
from lsat_ray.generative.blocks import Blocks
from lsat_ray.generative.encode import encode_targets
from lsat_ray.generative.fit import fit, validation_loss
from lsat_ray.generative.model import EMBEDDING, HEAD, GenerativeModel, parted
from lsat_ray.generative.rules import RULES, Setting
from lsat_ray.generative.spec import GenerativeSpec, Task
from lsat_ray.prompts.batch import collate
from lsat_ray.training.checkpoint import Checkpointer
from lsat_ray.training.fit import Fitted
from lsat_ray.training.penalty import rank_kl, softmax_kl

ENGINE = EngineConfig(kind="torch")
LORA = LoraSettings(rank=4, alpha=8)
RECIPE = Recipe(lr=5e-3, batch_size=16, epochs=2)


def setting(log: Blocks, **changes: Any) -> Setting:
    values: dict[str, Any] = {
        "backbone": "b", "data": log.fingerprint, "task": Task(history=8), "lora": LORA,
        "recipe": RECIPE, "later": RECIPE, "seed": 1,
    }  # fmt: skip
    return Setting(**(values | changes))


def run(
    model: GenerativeModel, log: Blocks, spec: GenerativeSpec, initial: Adapter | None = None, **more: Any
) -> Fitted:
    return fit(spec, model, log, more.pop("settings", ENGINE), initial, **more)


def test_it_learns_and_what_is_published_is_what_was_validated(model: GenerativeModel, log: Blocks) -> None:
    spec = setting(log).spec(2)
    model.reset(1)
    encoded = encode_targets(log, log.rows(2, "validation"), model.codes, 8)
    before = validation_loss(model, encoded, 0.8)
    fitted = run(model, log, spec)
    assert fitted.figure < before - 0.02
    model.reset(5)
    model.wear(fitted.adapter)
    assert validation_loss(model, encoded, 0.8) == pytest.approx(fitted.figure, abs=1e-6)
    assert {EMBEDDING, HEAD} <= fitted.adapter.state.keys()


def test_the_same_spec_gives_the_same_bytes_and_pieces_do_not_matter(model: GenerativeModel, log: Blocks) -> None:
    spec = setting(log).spec(2)
    one = run(model, log, spec)
    scramble(model, 9)
    two = run(model, log, spec)
    assert all(torch.equal(v, two.adapter.state[k]) for k, v in one.adapter.state.items())
    cut = run(model, log, spec, settings=EngineConfig(kind="torch", micro_batches=3))
    for name, value in one.adapter.state.items():
        np.testing.assert_allclose(cut.adapter.state[name], value, atol=2e-3)


def test_an_interrupted_fit_goes_on_to_the_same_bytes(model: GenerativeModel, log: Blocks, tmp_path: Path) -> None:
    """The loop is that of the other task, checkpoints included."""
    base = setting(log, recipe=RECIPE.model_copy(update={"epochs": 3, "patience": 3}))
    first, spec = run(model, log, base.spec(1)), base.spec(2, init=base.spec(1), regulariser=Regulariser("l2", 0.1))
    spec = replace(spec, recipe=base.recipe)
    whole = run(model, log, spec, first.adapter)
    states, told = Checkpointer(tmp_path, every=1), []

    def die(line: str) -> None:
        told.append(line)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, log, spec, first.adapter, checkpoint=states, progress=die)
    scramble(model, 4)
    lines: list[str] = []
    again = run(model, log, spec, first.adapter, checkpoint=states, progress=lines.append)
    assert lines[0].startswith("resumed at step")
    assert all(torch.equal(v, again.adapter.state[k]) for k, v in whole.adapter.state.items())
    assert (again.history, again.penalty, again.figure) == (whole.history, whole.penalty, whole.figure)


def test_a_budget_of_steps_ends_a_fit(model: GenerativeModel, log: Blocks) -> None:
    recipe = RECIPE.model_copy(update={"max_steps": 2, "epochs": 9})
    fitted = run(model, log, setting(log, later=recipe).spec(2))
    assert (fitted.steps, fitted.stopped_by) == (2, "budget")
    assert fitted.facts()["loss"] == fitted.figure == fitted.history[-1][2]


def test_codes_that_are_not_trained_stay(code_backbone: Any, log: Blocks) -> None:
    model = GenerativeModel(code_backbone, LORA, train_codes=False)
    before = {k: v.detach().clone() for k, v in model.code_rows().items()}
    fitted = run(model, log, setting(log, task=Task(history=8, train_codes=False)).spec(2))
    assert all(".lora_" in k for k in fitted.adapter.state)
    assert all(torch.equal(before[k], v) for k, v in model.code_rows().items())


def test_the_codes_rows_come_from_the_newest_frozen_adapter(model: GenerativeModel, log: Blocks) -> None:
    past = []
    for seed in (1, 2):
        scramble(model, seed)
        past.append(model.snapshot())
    base = setting(log)
    still = Recipe(lr=1e-12, batch_size=16, epochs=1)
    spec = base.spec(3, frozen=Frozen((base.spec(1), base.spec(2)), "sum"), recipe=still)
    rows = parted(run(model, log, spec, frozen=past).adapter)[1]
    assert all(torch.allclose(rows[k], past[1].state[k], atol=1e-8) for k in (EMBEDDING, HEAD))


@pytest.mark.parametrize("name", list(RULES))
def test_every_rule_trains_two_blocks_on(model: GenerativeModel, log: Blocks, name: str) -> None:
    base = setting(log, recipe=RECIPE.model_copy(update={"epochs": 1}), later=RECIPE.model_copy(update={"epochs": 1}))
    plan = RULES[name](base, 3)
    made: dict[GenerativeSpec, Adapter] = {}

    def make(spec: Any) -> Adapter:
        if spec not in made:
            frozen = [make(s) for s in spec.frozen.adapters] if spec.frozen else []
            made[spec] = run(model, log, spec, make(spec.init) if spec.init else None, frozen=frozen).adapter
        return made[spec]

    for spec in plan.adapters:
        assert spec.last_period <= 3
        adapter = make(spec)
        model.wear(adapter)
        assert any(v.abs().max() > 0 for k, v in adapter.state.items() if ".lora_B." in k)
    assert len(plan.grid[0]) == len(plan.adapters)


@pytest.mark.parametrize("kind", ["softmax-kl", "l2", "rank-kl", "output-kl"])
def test_a_heavy_penalty_holds_the_adapter_near_its_start(model: GenerativeModel, log: Blocks, kind: str) -> None:
    base = setting(log)
    first = run(model, log, base.spec(1)).adapter
    weight = {"softmax-kl": 1e7, "l2": 1e2, "rank-kl": 1e5, "output-kl": 1e4}[kind]
    own = {"regulariser": Regulariser(kind, weight)}  # type: ignore[arg-type]
    free = run(model, log, base.spec(2, init=base.spec(1)), first).adapter
    held = run(model, log, base.spec(2, init=base.spec(1), **own), first).adapter
    assert _moved(held, first, kind, model, log) < 0.2 * _moved(free, first, kind, model, log)


def _moved(adapter: Adapter, first: Adapter, kind: str, model: GenerativeModel, log: Blocks) -> float:
    now, then = (parted(a)[0].state for a in (adapter, first))
    if kind == "l2":
        return float(sum((now[k] - then[k]).square().sum() for k in then))
    if kind == "softmax-kl":
        return float(softmax_kl(now, then))
    if kind == "rank-kl":
        return float(rank_kl(now, then))
    from lsat_ray.generative.penalty import OutputKl

    spec = setting(log).spec(2, init=setting(log).spec(1), regulariser=Regulariser("output-kl", 1.0))
    kl = OutputKl(spec, model, parted(first)[0])
    model.wear(adapter)
    encoded = encode_targets(log, log.rows(2, "train"), model.codes, 8)
    batch = collate(encoded, np.arange(len(encoded)))
    with kl.watched(torch.ones(batch.tokens.shape, dtype=torch.bool)), torch.no_grad():
        model(batch)
    return float(kl.value())


def test_rank_kl_is_the_sum_over_ranks(rng: np.random.Generator) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            "m.lora_A.weight": torch.randn(2, 5, generator=generator),
            "m.lora_B.weight": torch.randn(3, 2, generator=generator),
        }

    now, then = state(0), state(1)
    expected = 0.0
    for v, r in [*zip(now["m.lora_A.weight"], then["m.lora_A.weight"], strict=True),
                 *zip(now["m.lora_B.weight"].T, then["m.lora_B.weight"].T, strict=True)]:  # fmt: skip
        p, q = v.softmax(0), r.softmax(0)
        expected += float((p * (p / q).log()).sum())
    assert float(rank_kl(now, then)) == pytest.approx(expected, rel=1e-5)
    assert float(rank_kl(now, now)) == 0


def test_output_kl_is_zero_at_the_start_and_leaves_the_logits_alone(model: GenerativeModel, log: Blocks) -> None:
    from lsat_ray.generative.penalty import OutputKl

    spec = setting(log).spec(2, init=setting(log).spec(1), regulariser=Regulariser("output-kl", 2.0))
    kl = OutputKl(spec, model, parted(model.snapshot())[0])
    encoded = encode_targets(log, log.rows(2, "train"), model.codes, 8)
    batch = collate(encoded, np.arange(6))
    plain = model(batch)
    with kl.watched(torch.ones(batch.tokens.shape, dtype=torch.bool)):
        watched = model(batch)
    torch.testing.assert_close(plain, watched, atol=1e-5, rtol=1e-5)
    assert len(kl.parts) == len(kl.pairs) and abs(float(kl.value().detach())) < 1e-6


def test_the_ratio_of_output_kl_to_the_loss_is_recorded(model: GenerativeModel, log: Blocks) -> None:
    """Of the kept weights, measured by hand in one pass; however many sequences a pass has."""
    from lsat_ray.generative.penalty import OutputKl

    base = setting(log)
    first = run(model, log, base.spec(1)).adapter
    spec = base.spec(2, init=base.spec(1), regulariser=Regulariser("output-kl", 3.0))
    one, two = (run(model, log, spec, first, settings=EngineConfig(kind="torch", micro_batches=m)) for m in (1, 4))
    assert [p[0] for p in one.penalty] == [h[0] for h in one.history]
    assert one.penalty_ratio == one.facts()["penalty_ratio"] and 0 < one.penalty_ratio < 1
    assert two.penalty[0][1:] == pytest.approx(one.penalty[0][1:], rel=0.05)
    kl = OutputKl(spec, model, parted(first)[0])
    model.wear(one.adapter)
    encoded = encode_targets(log, log.rows(2, "validation"), model.codes, 8)
    batch = collate(encoded, np.arange(len(encoded)))
    length = torch.from_numpy(encoded.lengths)[batch.sequence]
    with kl.watched(torch.arange(batch.tokens.shape[1]) < length[:, None]), torch.no_grad():
        model(batch)
    kept = next(value for step, value, _ in one.penalty if step == one.best_step)
    assert kept == pytest.approx(float(kl.value()), rel=0.05), "a mean over passes of a mean over tokens"


def test_specs_name_everything_that_decides(log: Blocks) -> None:
    base = setting(log)
    spec = base.spec(2)
    others = [
        replace(spec, task=Task(history=9)), replace(spec, task=Task(history=8, temperature=1.0)),
        replace(spec, regulariser=Regulariser("rank-kl", 2)), replace(spec, seed=2),
        replace(spec, train=(Slice(1, "train"),)), replace(spec, init=base.spec(1)),
    ]  # fmt: skip
    assert len({s.digest for s in [spec, *others]}) == 1 + len(others)
    assert base.spec(2) == spec and base.spec(2, init=base.spec(1)).parents() == (base.spec(1),)


def test_bad_specs_are_one_line(model: GenerativeModel, log: Blocks) -> None:
    base = setting(log)
    with pytest.raises(LsatError, match="do not agree"):
        run(model, log, base.spec(2, init=base.spec(1)))
    with pytest.raises(LsatError, match="regulariser"):
        run(model, log, base.spec(2, regulariser=Regulariser("rank-kl", 1)))
    with pytest.raises(LsatError, match="no period 9"):
        run(model, log, base.spec(9))


def test_dropout_masks_are_of_seed_and_step(code_backbone: CodeBackbone, log: Blocks) -> None:
    lora = LORA.model_copy(update={"dropout": 0.3})
    model = GenerativeModel(code_backbone, lora)
    spec = setting(log, lora=lora, recipe=RECIPE.model_copy(update={"epochs": 1})).spec(2)
    one = run(model, log, spec).adapter.state
    torch.rand(7)  # the masks come from no generator
    two = run(model, log, spec).adapter.state
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    cut = run(model, log, spec, settings=EngineConfig(kind="torch", micro_batches=3)).adapter.state
    for name, value in one.items():
        np.testing.assert_allclose(cut[name], value, atol=2e-3)
    assert any(layer.p == 0.3 for layer in model.modules() if isinstance(layer, Dropout))
