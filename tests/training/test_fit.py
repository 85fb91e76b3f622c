"""Fitting: the loss is the plain one, runs repeat to the byte, and the rules about which step is kept hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_forward import plain
from workbench import Workbench, make_workbench

from lsat_ray.adapters.lora import Adapter
from lsat_ray.config import EngineConfig, Recipe
from lsat_ray.errors import LsatError
from lsat_ray.evaluation.metrics import auc_or_log_loss
from lsat_ray.prompts.batch import by_age
from lsat_ray.scoring.score import score
from lsat_ray.training import fit as training
from lsat_ray.training import objective, selection
from lsat_ray.training.fit import Fitted, TorchEngine, fit

SETTINGS = EngineConfig(kind="torch")


def run(bench: Workbench, settings: EngineConfig = SETTINGS, initial: Adapter | None = None, **changes: Any) -> Fitted:
    """Fit an adapter of the workbench."""
    return fit(bench.spec(**changes), bench.model, bench.train, bench.validation, TorchEngine(), settings, initial)


def same(a: Adapter, b: Adapter) -> bool:
    """Say whether two adapters have the same bytes."""
    return a.state.keys() == b.state.keys() and all(torch.equal(a.state[k], b.state[k]) for k in a.state)


def script(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let the validations of `fit` have these AUCs, then the last one for ever."""
    left = list(values)

    def margins(_model: Any, _engine: Any, rows: Any, _tokens: int) -> np.ndarray:
        return np.full(len(rows.row), left.pop(0) if len(left) > 1 else left[0])

    monkeypatch.setattr(objective, "sharded_margins", margins)
    for module in (objective, selection):
        monkeypatch.setattr(module, "auc_or_log_loss", lambda _label, margin: float(margin[0]))


def test_first_loss_is_the_plain_one(bench: Workbench) -> None:
    rows = np.arange(16)
    train = bench.encoder(bench.periods.rows(1, "train").take(rows))
    fitted = run(bench._replace(train=train), recipe=Recipe(batch_size=16, epochs=1))
    bench.model.reset(1)
    loss, _, _ = plain(bench, rows, "left")
    assert fitted.history[0][1] == pytest.approx(float(loss), rel=1e-5)


def test_the_loss_of_the_whole_text_is_that_of_plain_transformers(bench: Workbench) -> None:
    """As TALLRec's code has it: labels are the tokens themselves, here with the answer's first token as the last."""
    rows = np.arange(16)
    samples = bench.periods.rows(1, "train").take(rows)
    train = bench.encoder(samples)
    assert len(train.prefix) > 20
    recipe = Recipe(batch_size=16, epochs=3, lr=5e-3, loss="language")
    fitted = run(bench._replace(train=train), recipe=recipe)
    bench.model.reset(1)
    losses = []
    for ids, label in zip(bench.encoder.prompt_ids(samples), samples.label, strict=True):
        text = torch.tensor([[*ids, bench.backbone.answers[int(label)]]])
        with torch.no_grad():
            losses.append(float(bench.model.peft(input_ids=text, labels=text).loss))
    assert fitted.history[0][1] == pytest.approx(np.mean(losses), rel=1e-5)
    assert fitted.history[-1][1] < fitted.history[0][1] - 0.01
    parts = run(bench._replace(train=train), SETTINGS.model_copy(update={"micro_batches": 3}), recipe=recipe)
    assert parts.history[-1][1] == pytest.approx(fitted.history[-1][1], rel=1e-4)


@pytest.mark.parametrize("micro", [2, 3])
def test_micro_batches_change_nothing(bench: Workbench, micro: int) -> None:
    whole = run(bench)
    parts = run(bench, SETTINGS.model_copy(update={"micro_batches": micro}))
    for name, value in whole.adapter.state.items():
        torch.testing.assert_close(parts.adapter.state[name], value, rtol=2e-3, atol=2e-4)
    assert parts.history[0][1] == pytest.approx(whole.history[0][1], rel=1e-4)


def test_same_seed_same_bytes(bench: Workbench, tiny_backbone_folder: Any) -> None:
    again = make_workbench(bench.experiment, bench.periods, tiny_backbone_folder)
    torch.manual_seed(99)
    a, b = run(bench), run(again)
    assert same(a.adapter, b.adapter)
    assert np.array_equal(a.margin, b.margin)
    assert not same(a.adapter, run(bench, seed=2).adapter)


def test_a_fit_leaves_nothing_for_the_next(bench: Workbench) -> None:
    first = run(bench)
    run(bench, seed=5, recipe=Recipe(lr=1e-1, batch_size=8, epochs=1))
    assert same(run(bench).adapter, first.adapter)


def test_training_moves_the_adapter_and_lowers_the_loss(bench: Workbench) -> None:
    fitted = run(bench, recipe=Recipe(lr=1e-2, batch_size=16, epochs=6, patience=6))
    assert any(float(v.abs().max()) > 0 for k, v in fitted.adapter.state.items() if "lora_B" in k)
    assert fitted.history[-1][1] < fitted.history[0][1] - 0.01
    assert fitted.targets == fitted.history[-1][0] // fitted.history[0][0] * len(bench.train.row)


def test_kept_margins_are_those_of_the_kept_weights(bench: Workbench) -> None:
    fitted = run(bench)
    again = score(bench.model, fitted.adapter, bench.validation)
    assert np.array_equal(again, fitted.margin)
    assert auc_or_log_loss(bench.validation.label, again) == fitted.figure


def test_backbone_stays_frozen(bench: Workbench) -> None:
    before = {k: v.clone() for k, v in bench.backbone.model.state_dict().items() if "lora_" not in k}
    run(bench)
    after = bench.backbone.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_warm_start_begins_at_the_given_weights(bench: Workbench) -> None:
    parent = run(bench)
    child = run(bench, initial=parent.adapter, init=bench.spec(), recipe=Recipe(lr=1e-12, batch_size=16, epochs=1))
    for name, value in parent.adapter.state.items():
        torch.testing.assert_close(child.adapter.state[name], value, rtol=0, atol=1e-9)


def test_a_spec_and_its_start_must_agree(bench: Workbench) -> None:
    with pytest.raises(LsatError, match="do not agree"):
        run(bench, init=bench.spec())


@pytest.mark.parametrize(("aucs", "kept"), [([0.5, 0.55, 0.6], 0), ([0.6, 0.6, 0.6], 0), ([0.5, 0.7, 0.6], 2)])
def test_keep_old_keeps_the_parent_unless_it_is_beaten(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, aucs: list[float], kept: int
) -> None:
    parent = run(bench)
    script(monkeypatch, aucs)
    recipe = Recipe(batch_size=1000, epochs=2, patience=5)
    child = run(bench, initial=parent.adapter, init=bench.spec(), keep_old=True, recipe=recipe)
    assert (child.best_step, child.figure) == (kept, max(aucs))
    assert same(child.adapter, parent.adapter) == (kept == 0)


def test_the_start_that_keep_old_compares_with_does_not_eat_patience(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference code trains as if there were no start, and compares it at the end."""
    parent = run(bench)
    script(monkeypatch, [0.5, 0.55, 0.6, 0.65, 0.9])
    recipe = Recipe(batch_size=1000, epochs=4, patience=1)
    child = run(bench, initial=parent.adapter, init=bench.spec(), keep_old=True, recipe=recipe)
    assert (child.steps, child.best_step, child.figure, child.stopped_by) == (4, 0, 0.9, "budget")
    assert same(child.adapter, parent.adapter)


def test_the_kept_start_has_its_own_margins(bench: Workbench) -> None:
    """A start so good that steps of nearly nothing do not beat it comes back with what it scores."""
    parent = run(bench, recipe=Recipe(lr=1e-2, batch_size=16, epochs=6, patience=6))
    recipe = Recipe(lr=1e-12, batch_size=16, epochs=1)
    child = run(bench, initial=parent.adapter, init=bench.spec(), keep_old=True, recipe=recipe)
    assert (child.best_step, child.steps) == (0, child.history[-1][0])
    assert same(child.adapter, parent.adapter)
    assert np.array_equal(child.margin, score(bench.model, parent.adapter, bench.validation))


def test_patience_counts_validations_without_a_better_auc(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, [0.5, 0.6, 0.55, 0.6, 0.7])
    fitted = run(bench, recipe=Recipe(batch_size=1000, epochs=20, patience=2))
    assert (fitted.best_step, fitted.steps, fitted.figure) == (2, 4, 0.6)
    assert fitted.stopped_by == "patience"
    assert {"best_step": 2, "steps": 4, "stopped_by": "patience"}.items() <= fitted.facts().items()


def test_a_budget_of_steps_ends_a_fit_with_a_validation(bench: Workbench) -> None:
    recipe = Recipe(batch_size=16, epochs=9, eval_every=4, max_steps=6, patience=9)
    fitted = run(bench, recipe=recipe)
    assert (fitted.steps, fitted.stopped_by) == (6, "budget")
    assert [step for step, *_ in fitted.history] == [4, 6]
    longer = run(bench, recipe=recipe.model_copy(update={"max_steps": None, "epochs": 2}))
    assert longer.history[0] == fitted.history[0]


def test_validations_per_epoch_are_spread_evenly_and_end_with_the_epoch(bench: Workbench) -> None:
    per_epoch = run(bench, recipe=Recipe(batch_size=8, epochs=1)).steps
    assert per_epoch == 7
    fitted = run(bench, recipe=Recipe(batch_size=8, epochs=2, evals_per_epoch=3, patience=9))
    assert [step for step, *_ in fitted.history] == [3, 5, 7, 10, 12, 14]
    many = run(bench, recipe=Recipe(batch_size=8, epochs=1, evals_per_epoch=99, patience=9))
    assert [step for step, *_ in many.history] == list(range(1, 8))


def test_one_rhythm_of_validation_at_a_time() -> None:
    with pytest.raises(ValueError, match="eval_every and evals_per_epoch"):
        Recipe(eval_every=3, evals_per_epoch=2)


def test_a_spec_of_another_lora_shape_is_refused(bench: Workbench) -> None:
    with pytest.raises(LsatError, match=r"lora of the spec and of the model differ \(rank 2 against 4\)"):
        run(bench, lora=bench.model.lora.model_copy(update={"rank": 2}))


def test_eval_every_counts_steps(bench: Workbench) -> None:
    fitted = run(bench, recipe=Recipe(batch_size=16, epochs=2, eval_every=3, patience=9))
    assert [step for step, _, _ in fitted.history] == [3, 6]


def test_fewer_steps_than_eval_every_still_give_an_adapter(bench: Workbench) -> None:
    fitted = run(bench, recipe=Recipe(batch_size=1000, epochs=1, eval_every=50))
    assert fitted.best_step == fitted.steps == 1
    assert len(fitted.margin) == len(bench.validation.row)


def test_a_loss_that_is_not_finite_names_its_rows(bench: Workbench) -> None:
    class Broken(TorchEngine):
        """Lose the numbers in the third batch."""

        calls = 0

        def logits(self, batch: Any) -> torch.Tensor:
            self.calls += 1
            self.rows = bench.train.row[batch.index].tolist()
            return super().logits(batch) * (float("nan") if self.calls == 3 else 1.0)

    engine = Broken()
    with pytest.raises(LsatError, match="the loss is nan on sample rows") as caught:
        fit(bench.spec(), bench.model, bench.train, bench.validation, engine, SETTINGS)
    assert str(engine.rows) in str(caught.value)


def test_warmup_raises_the_rate_linearly(bench: Workbench) -> None:
    rates: list[float] = []

    class Watched(TorchEngine):
        """Note the rates."""

        def step(self, lr: float) -> None:
            rates.append(lr)
            super().step(lr)

    recipe = Recipe(lr=1.0e-3, warmup=4, batch_size=8, epochs=1)
    fit(bench.spec(recipe=recipe), bench.model, bench.train, bench.validation, Watched(), SETTINGS)
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3] + [1e-3] * (len(rates) - 4))


def test_a_loss_is_weighted_by_age(bench: Workbench) -> None:
    """The loss of a batch is the mean of the weighted cross-entropies, in any number of micro-batches."""
    engine = TorchEngine()
    bench.model.reset(0)
    engine.begin(bench.model, Recipe(), 1)
    rows = by_age(bench.train, 10.0)
    batch = np.arange(len(rows))
    margin = training.sharded_margins(bench.model, engine, rows, SETTINGS.batch_tokens).astype(np.float64)
    cross_entropy = np.logaddexp(0.0, -np.where(rows.label == 1, 1.0, -1.0) * margin)
    assert rows.weight is not None
    assert rows.weight.max() > 2 * rows.weight.min()
    for pieces in (1, 3):
        found = training.gradients(bench.model, engine, rows, batch, pieces)
        assert found == [pytest.approx(float(np.mean(rows.weight * cross_entropy)), rel=1e-5)]
    assert found != [pytest.approx(float(cross_entropy.mean()), rel=1e-4)]


def test_a_very_long_half_life_is_none_and_a_short_one_is_not(bench: Workbench) -> None:
    plain_, long, short = (run(bench, half_life=h) for h in (None, 1e12, 20.0))
    for name, value in plain_.adapter.state.items():
        torch.testing.assert_close(long.adapter.state[name], value, rtol=1e-3, atol=1e-5)
    assert not same(plain_.adapter, short.adapter)
