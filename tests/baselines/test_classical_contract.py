"""Specs, rules, determinism, unseen ids and the SPARSE pitfall of the classical rivals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import rivals
import torch
from safetensors.torch import load, save

from lsat_ray.baselines import classical
from lsat_ray.baselines.spec import ClassicalRecipe
from lsat_ray.baselines.training import criterion
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError

RECIPE = ClassicalRecipe(width=8, epochs=2, warmup_rows=100)


def coin(rng: Any, user: Any, item: Any, history: Any, liked: Any) -> np.ndarray:
    return rng.random(len(user)) < 0.3 + 0.4 * (item % 2)


@pytest.fixture(scope="module")
def periods(plant: Any) -> Any:
    torch.set_num_threads(1)
    made = plant(coin, periods=4, rows=300)
    return replace(made, borders=made.borders[1:], fingerprint="coin-with-warmup")  # 300 rows before D_1


def test_full_retraining_names_the_papers_slices() -> None:
    spec = rivals.full_retraining("mf", "d", 3, 0)
    assert set(spec.train) == {Slice(t, "train") for t in (1, 2, 3)} | {Slice(t, "validation") for t in (1, 2)}
    assert spec.validation == (Slice(3, "validation"),)
    assert spec.init is None and spec.warmup and spec.last_period == 3 and spec.parents() == ()


def test_fine_tuning_is_a_chain_from_full_retraining() -> None:
    spec = rivals.fine_tuning("mf", "d", 3, 0)
    assert spec.train == (Slice(3, "train"), Slice(2, "validation"))
    assert spec.init is not None and spec.parents() == (spec.init,) and spec.keep_old and not spec.warmup
    assert spec.init.init == rivals.full_retraining("mf", "d", 1, 0)
    assert spec.manifest()["init"] == spec.init.digest


def test_everything_that_decides_weights_changes_the_digest() -> None:
    base = rivals.full_retraining("mf", "d", 2, 0)
    others = [
        replace(base, model="caser"),
        replace(base, data="e"),
        replace(base, seed=1),
        replace(base, warmup=False),
        replace(base, recipe=ClassicalRecipe(lr=2e-3)),
        replace(base, init=base),
        replace(base, validation=(Slice(1, "validation"),)),
    ]
    assert len({base.digest, *(o.digest for o in others)}) == len(others) + 1


def test_rows_are_every_model_under_both_rules() -> None:
    assert set(rivals.rows("d", 0)) == {
        f"{m}{s}/{r}"
        for m in classical.MODELS
        for s in ("", "+side", "+side@period")
        for r in ("full-retraining", "fine-tuning")
    }


@pytest.mark.parametrize("model", classical.MODELS)
def test_fit_is_deterministic_and_pure_and_its_state_survives_safetensors(periods: Any, model: Any) -> None:
    spec = rivals.full_retraining(model, periods.fingerprint, 1, 7, RECIPE)
    torch.manual_seed(123)
    first = classical.fit(spec, periods)
    drawn = torch.rand(1)
    torch.manual_seed(123)
    assert torch.equal(drawn, torch.rand(1)), "the caller's generator was moved"
    second = classical.fit(spec, periods)
    assert all(torch.equal(first.state[k], second.state[k]) for k in first.state)
    kept = load(save({k: v.contiguous() for k, v in first.state.items()}))
    rows = periods.rows(2)
    scores = classical.score(spec, kept, periods, rows)
    assert scores.dtype == np.float64 and scores.shape == (len(rows),) and np.isfinite(scores).all()
    assert np.array_equal(scores, classical.score(spec, first.state, periods, rows))
    held = periods.select(spec.validation)
    assert np.allclose(first.validation_scores, classical.score(spec, first.state, periods, held), atol=1e-6)


@pytest.mark.parametrize("model", classical.MODELS)
def test_fine_tuning_continues_and_leaves_the_old_state_alone(periods: Any, model: Any) -> None:
    plan = rivals.rows(periods.fingerprint, 0, RECIPE)[f"{model}/fine-tuning"]
    first = classical.fit(plan(1), periods)
    before = {k: v.clone() for k, v in first.state.items()}
    second = classical.fit(replace(plan(2), keep_old=False), periods, first.state)
    assert all(torch.equal(first.state[k], before[k]) for k in before)
    assert any(not torch.equal(second.state[k], before[k]) for k in before)


@pytest.mark.parametrize("model", classical.MODELS)
def test_unknown_users_and_items_are_scored(periods: Any, model: Any) -> None:
    spec = rivals.full_retraining(model, periods.fingerprint, 1, 0, RECIPE)
    state = classical.fit(spec, periods).state
    rows = periods.rows(2).take(slice(0, 5))
    strange = replace(rows, user=rows.user + 10_000, item=rows.item + 10_000, history_item=rows.history_item + 10_000)
    assert np.isfinite(classical.score(spec, state, periods, strange)).all()


def test_weight_decay_leaves_unseen_rows_at_their_random_start(periods: Any) -> None:
    torch.manual_seed(0)
    recipe = RECIPE.model_copy(update={"weight_decay": 0.1, "init_scale": 0.5})
    state = classical.fit(rivals.full_retraining("mf", periods.fingerprint, 1, 0, recipe), periods).state
    assert state["items.weight"][40:].std() > 0.4  # items 40.. occur nowhere; Adam's own decay would send them to zero


def test_warmup_is_optional_and_bounded(periods: Any) -> None:
    from lsat_ray.baselines.training import training_rows

    spec = rivals.full_retraining("mf", periods.fingerprint, 1, 0, RECIPE)
    assert len(training_rows(spec, periods)) == 100 + 270
    assert training_rows(spec, periods).row.min() == 200
    assert len(training_rows(replace(spec, warmup=False), periods)) == 270


def test_mismatches_are_explained(periods: Any) -> None:
    spec = rivals.full_retraining("mf", "another", 1, 0, RECIPE)
    with pytest.raises(LsatError, match="make the spec from this cut"):
        classical.fit(spec, periods)
    chained = rivals.fine_tuning("mf", periods.fingerprint, 2, 0, RECIPE)
    with pytest.raises(LsatError, match=r"spec\.init"):
        classical.fit(chained, periods)
    with pytest.raises(LsatError, match="uses period 9"):
        classical.fit(rivals.full_retraining("mf", periods.fingerprint, 9, 0, RECIPE), periods)


@pytest.mark.parametrize("model", classical.MODELS)
def test_validation_rows_of_one_class_do_not_stop_a_fit(periods: Any, model: Any) -> None:
    label = periods.samples.label.copy()
    label[periods.positions(1, "validation")] = 1
    made = replace(periods, samples=replace(periods.samples, label=label), fingerprint="one-class")
    fitted = classical.fit(rivals.full_retraining(model, "one-class", 1, 0, RECIPE), made)
    assert np.isfinite(fitted.validation_scores).all()


NETWORKS = [m for m in classical.MODELS if m != "logistic"]


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("side", ["none", "online"])
def test_a_fresh_fit_leaves_its_start_and_waits_before_it_stops(periods: Any, model: Any, side: str) -> None:
    """A head that starts at its ridge solution is hard to beat in one pass: that must not end the fit."""
    recipe = RECIPE.model_copy(update={"side": side, "epochs": 12, "patience": 2})
    fitted = classical.fit(rivals.full_retraining(model, periods.fingerprint, 2, 0, recipe), periods)
    assert fitted.best_epoch >= 1
    assert (fitted.stopped_by == "patience") == (fitted.epochs - fitted.best_epoch >= 2)
    assert fitted.stopped_by == "patience" or fitted.epochs == 12
    assert fitted.steps == fitted.epochs * 3  # 670 rows in batches of 256


@pytest.mark.parametrize("model", classical.MODELS)
def test_the_old_weights_use_up_no_patience_and_win_a_tie(periods: Any, model: Any) -> None:
    """On validation rows of one kind nothing beats the start: it is kept, after as many passes as without it."""
    recipe = RECIPE.model_copy(update={"epochs": 5, "patience": 2, "lr": 1e-30, "online_lr": 1e-30})
    plan = rivals.rows(periods.fingerprint, 0, recipe)[f"{model}/fine-tuning"]
    first = classical.fit(plan(1), periods)
    kept = classical.fit(plan(2), periods, first.state)
    moved = classical.fit(replace(plan(2), keep_old=False), periods, first.state)
    assert kept.epochs == moved.epochs and kept.stopped_by == moved.stopped_by
    assert kept.best_epoch == 0 and all(torch.equal(kept.state[k], first.state[k]) for k in first.state)
    assert moved.best_epoch >= 1


def test_a_budget_that_is_used_up_is_said(periods: Any) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 1, "patience": 1})
    fitted = classical.fit(rivals.full_retraining("mf", periods.fingerprint, 1, 0, recipe), periods)
    assert fitted.stopped_by == "budget" and fitted.epochs == 1


def test_passes_are_selected_by_the_loss_or_by_the_auc() -> None:
    label = np.array([0, 1, 1, 0])
    sharp, blunt = np.array([-5.0, 9.0, 6.0, 5.0]), np.array([0.4, 0.6, 0.45, 0.5])
    for loss in ("mse", "bce"):
        by_loss, by_auc = (ClassicalRecipe(loss=loss, select=select) for select in ("loss", "auc"))
        assert criterion(by_auc, label, sharp) > criterion(by_auc, label, blunt)
        assert criterion(by_loss, label, sharp) < criterion(by_loss, label, blunt)
    assert criterion(ClassicalRecipe(select="loss"), label, blunt) == pytest.approx(-np.mean((label - blunt) ** 2))
    likely = 1 / (1 + np.exp(-blunt))
    expected = np.mean(np.log(np.where(label == 1, likely, 1 - likely)))
    assert criterion(ClassicalRecipe(loss="bce", select="loss"), label, blunt) == pytest.approx(expected)
    one_class = criterion(ClassicalRecipe(select="auc"), np.ones(4), blunt)
    assert one_class == pytest.approx(-np.mean((1 - blunt) ** 2))
