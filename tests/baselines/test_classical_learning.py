"""Each model finds the signal that it is made for, and none where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rivals
import torch

from lsat_ray.baselines import classical
from lsat_ray.baselines.spec import ClassicalRecipe
from lsat_ray.evaluation.metrics import auc

Array = np.ndarray
FAST = {"width": 16, "lr": 1e-2, "table_lr": 1.0, "init_scale": 0.1, "batch_size": 128, "epochs": 25, "patience": 8}


def noisy(rng: np.random.Generator, truth: Array, flip: float = 0.05) -> Array:
    return truth ^ (rng.random(len(truth)) < flip)


def identity(rng: np.random.Generator, user: Array, item: Array, history: Array, liked: Array) -> Array:
    """Users of each half like the items of one half: no bias helps."""
    return noisy(rng, (user % 2) == (item % 2))


def order(rng: np.random.Generator, user: Array, item: Array, history: Array, liked: Array) -> Array:
    """A target is liked when it is of the newest event's kind; the other nine events say nothing."""
    return noisy(rng, (history[:, -1] % 2) == (item % 2))


def title_only(rng: np.random.Generator, user: Array, item: Array, history: Array, liked: Array) -> Array:
    """What the title says decides."""
    return noisy(rng, item % 2 == 0)


def share(rng: np.random.Generator, user: Array, item: Array, history: Array, liked: Array) -> Array:
    """The share of likes in the history is the probability."""
    return rng.random(len(user)) < liked.mean(axis=1)


def nothing(rng: np.random.Generator, user: Array, item: Array, history: Array, liked: Array) -> Array:
    """Labels are coins."""
    return rng.random(len(user)) < 0.5


def outcome(model: Any, periods: Any, **recipe: Any) -> float:
    """Return the AUC on D_2 of the model of period 1."""
    torch.set_num_threads(1)
    spec = rivals.full_retraining(model, periods.fingerprint, 1, 0, ClassicalRecipe(**recipe))
    state = classical.fit(spec, periods).state
    rows = periods.rows(2)
    return auc(rows.label, classical.score(spec, state, periods, rows))


def words(item: int) -> str:
    return f"{'Sunny' if item % 2 == 0 else 'Gloomy'} Tale {item}"


def test_mf_learns_identity(plant: Any) -> None:
    assert outcome("mf", plant(identity), side="none", history_vector=False, **FAST) > 0.85


@pytest.mark.parametrize("model", ["gru4rec", "caser", "sasrec"])
def test_sequence_models_learn_order(plant: Any, model: str) -> None:
    assert outcome(model, plant(order, rows=2500), side="none", **FAST) > 0.85


def test_a_bag_of_the_history_does_not_hold_the_order(plant: Any) -> None:
    rows = plant(order, rows=2500).rows(2)
    bag = np.where(rows.item % 2 == 0, 1, -1) * ((rows.history_item % 2 == 0).mean(axis=1) - 0.5)
    assert auc(rows.label, bag) < 0.7


@pytest.mark.parametrize("model", ["deepmusic", "logistic"])
def test_titles_carry_to_cold_items(plant: Any, model: str) -> None:
    assert outcome(model, plant(title_only, cold=True, title=words), side="none", **FAST) > 0.85


@pytest.mark.parametrize("model", ["mf", "gru4rec", "caser", "sasrec"])
def test_ids_do_not_carry_to_cold_items(plant: Any, model: str) -> None:
    recipe = FAST | {"epochs": 6}
    # 400 cold items with one random score each: the standard error is .029
    assert abs(outcome(model, plant(title_only, cold=True, title=words), side="none", **recipe) - 0.5) < 0.09


@pytest.mark.parametrize("model", classical.MODELS)
def test_side_features_are_used(plant: Any, model: str) -> None:
    periods = plant(share, history_likes=None)
    rows = periods.rows(2)
    best = auc(rows.label, rows.history_label.mean(axis=1))
    assert outcome(model, periods, side="online") > best - 0.02


@pytest.mark.parametrize("model", classical.MODELS)
def test_no_signal_no_skill(plant: Any, model: str) -> None:
    assert abs(outcome(model, plant(nothing)) - 0.5) < 0.05


@pytest.mark.parametrize("model", ["mf", "logistic"])
@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_both_losses_learn(plant: Any, model: str, loss: str) -> None:
    assert outcome(model, plant(share, history_likes=None), loss=loss, side="online") > 0.75
