"""Logistic regression on side and title features (scikit-learn), and its online update: the strong simple row."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from lsat_ray.baselines.features import HISTORY, STREAM, side_of, title_vectors
from lsat_ray.baselines.spec import ClassicalRecipe, ClassicalSpec
from lsat_ray.baselines.training import Fitted, State, criterion, patient, training_rows
from lsat_ray.data.periods import Periods
from lsat_ray.data.windows import Samples
from lsat_ray.errors import LsatError

TITLE_WIDTH = 64


def design(spec: ClassicalSpec, periods: Periods, samples: Samples) -> np.ndarray:
    """Return the features of samples, float64 [N, F]: of the history, counts of the stream, year and age, the title.

    Without side features the counts are left out: what is left is what the sample itself holds.
    """
    titles = title_vectors(periods.titles, TITLE_WIDTH)
    item = samples.item.astype(np.int64)
    known = (item >= 0) & (item < len(titles))
    words = np.where(known[:, None], titles[np.where(known, item, 0)], 0.0)
    side = side_of(spec, periods)[samples.row]
    if spec.recipe.side == "none":
        side = np.delete(side, slice(len(HISTORY), len(HISTORY + STREAM)), axis=1)
    return np.hstack([side, words]).astype(np.float64)


def fit_logistic(spec: ClassicalSpec, periods: Periods, initial: State | None) -> Fitted:
    """Fit by L-BFGS from nothing, or go on from `initial` by stochastic gradient descent, one pass at a time."""
    started = time.perf_counter()
    rows, held = training_rows(spec, periods), periods.select(spec.validation)
    x, y, valid = design(spec, periods, rows), rows.label.astype(np.int64), design(spec, periods, held)
    if len(np.unique(y)) < 2:
        raise LsatError(f"logistic: the {len(y)} training rows hold one class; train on more periods")
    if initial is None:
        best, best_epoch, epochs, stopped_by = _solve(spec, x, y)
    else:
        recipe = spec.recipe.model_copy(update={"loss": "bce"})  # these scores are log-odds, whatever the others fit
        old = (initial, criterion(recipe, held.label, _apply(initial, valid))) if spec.keep_old else None
        a_pass = _passes(recipe, spec.seed, x, y, initial, valid, held.label)
        best, best_epoch, epochs, stopped_by = patient(spec.recipe, a_pass, old)
    seconds = time.perf_counter() - started
    return Fitted(best, _apply(best, valid), epochs, best_epoch, epochs * len(y), stopped_by, seconds)


def score_logistic(spec: ClassicalSpec, state: State, periods: Periods, samples: Samples) -> np.ndarray:
    """Return the log-odds of samples, float64 [N]."""
    return _apply(state, design(spec, periods, samples))


def _solve(spec: ClassicalSpec, x: np.ndarray, y: np.ndarray) -> tuple[State, int, int, Literal["patience", "budget"]]:
    """Solve to convergence, which nobody's patience cuts short."""
    from sklearn.linear_model import LogisticRegression

    most = 500
    model = LogisticRegression(C=1.0 / (spec.recipe.penalty * len(y)), max_iter=most)
    model.fit(x, y)
    return _state(model.coef_[0], model.intercept_[0]), 1, 1, "patience" if model.n_iter_[0] < most else "budget"


def _passes(
    recipe: ClassicalRecipe,
    seed: int,
    x: np.ndarray,
    y: np.ndarray,
    initial: State,
    valid: np.ndarray,
    labels: np.ndarray,
) -> Callable[[int], tuple[State, float]]:
    """Return a function that makes one pass of stochastic gradient descent from where the last one ended."""
    from sklearn.linear_model import SGDClassifier

    current = initial

    def a_pass(epoch: int) -> tuple[State, float]:
        nonlocal current
        model = SGDClassifier(
            loss="log_loss",
            alpha=recipe.penalty,
            learning_rate="constant",
            eta0=recipe.online_lr,
            max_iter=1,
            tol=None,
            random_state=seed + epoch,
        )
        # Copies: scikit-learn goes on from these arrays in place.
        coefficients, intercept = current["coefficients"].numpy().copy(), current["intercept"].numpy().copy()
        model.fit(x, y, coef_init=coefficients[None], intercept_init=intercept)
        current = _state(model.coef_[0], model.intercept_[0])
        return current, criterion(recipe, labels, _apply(current, valid))

    return a_pass


def _state(coefficients: np.ndarray, intercept: float) -> State:
    return {
        "coefficients": torch.from_numpy(np.array(coefficients, dtype=np.float64)),
        "intercept": torch.tensor([float(intercept)], dtype=torch.float64),
    }


def _apply(state: State, x: np.ndarray) -> np.ndarray:
    return x @ state["coefficients"].numpy() + float(state["intercept"])
