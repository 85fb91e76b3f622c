"""Logistic regression on side and title features (scikit-learn), and its online update: the strong simple row."""

from __future__ import annotations

import time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, SGDClassifier

from lsat_ray.baselines.features import side_table, title_vectors
from lsat_ray.baselines.spec import ClassicalSpec
from lsat_ray.baselines.training import Fitted, State, criterion, training_rows
from lsat_ray.data.periods import Periods
from lsat_ray.data.windows import Samples
from lsat_ray.errors import LsatError

TITLE_WIDTH = 64


def design(periods: Periods, samples: Samples) -> np.ndarray:
    """Return the features of samples, float64 [N, 14 + 64]: like-share, rates, popularity, recency, then the title."""
    titles = title_vectors(periods.titles, TITLE_WIDTH)
    item = samples.item.astype(np.int64)
    known = (item >= 0) & (item < len(titles))
    words = np.where(known[:, None], titles[np.where(known, item, 0)], 0.0)
    return np.hstack([side_table(periods)[samples.row], words]).astype(np.float64)


def fit_logistic(spec: ClassicalSpec, periods: Periods, initial: State | None) -> Fitted:
    """Fit by L-BFGS from nothing, or go on from `initial` by stochastic gradient descent, one pass at a time."""
    started = time.perf_counter()
    rows, held = training_rows(spec, periods), periods.select(spec.validation)
    x, y, valid = design(periods, rows), rows.label.astype(np.int64), design(periods, held)
    if len(np.unique(y)) < 2:
        raise LsatError(f"logistic: the {len(y)} training rows hold one class; train on more periods")
    if initial is None:
        best, epoch, best_epoch = _solve(spec, x, y), 1, 1
    else:
        best, epoch, best_epoch = _continue(spec, x, y, initial, valid, held.label)
    return Fitted(best, _apply(best, valid), epoch, best_epoch, time.perf_counter() - started)


def score_logistic(spec: ClassicalSpec, state: State, periods: Periods, samples: Samples) -> np.ndarray:
    """Return the log-odds of samples, float64 [N]."""
    return _apply(state, design(periods, samples))


def _solve(spec: ClassicalSpec, x: np.ndarray, y: np.ndarray) -> State:
    model = LogisticRegression(C=1.0 / (spec.recipe.penalty * len(y)), max_iter=500)
    model.fit(x, y)
    return _state(model.coef_[0], model.intercept_[0])


def _continue(
    spec: ClassicalSpec, x: np.ndarray, y: np.ndarray, initial: State, valid: np.ndarray, labels: np.ndarray
) -> tuple[State, int, int]:
    """Return the best state on the validation rows, the passes made and the best pass."""
    recipe = spec.recipe
    best, best_epoch, epoch, current = initial, 0, 0, initial
    best_score = criterion(labels, _apply(initial, valid)) if spec.keep_old else -np.inf
    for epoch in range(1, recipe.epochs + 1):
        model = SGDClassifier(
            loss="log_loss",
            alpha=recipe.penalty,
            learning_rate="constant",
            eta0=recipe.online_lr,
            max_iter=1,
            tol=None,
            random_state=spec.seed + epoch,
        )
        # Copies: scikit-learn goes on from these arrays in place.
        coefficients, intercept = current["coefficients"].numpy().copy(), current["intercept"].numpy().copy()
        model.fit(x, y, coef_init=coefficients[None], intercept_init=intercept)
        current = _state(model.coef_[0], model.intercept_[0])
        score = criterion(labels, _apply(current, valid))
        if score > best_score:
            best, best_score, best_epoch = current, score, epoch
        elif epoch - best_epoch >= recipe.patience:
            break
    return best, epoch, best_epoch


def _state(coefficients: np.ndarray, intercept: float) -> State:
    return {
        "coefficients": torch.from_numpy(np.array(coefficients, dtype=np.float64)),
        "intercept": torch.tensor([float(intercept)], dtype=torch.float64),
    }


def _apply(state: State, x: np.ndarray) -> np.ndarray:
    return x @ state["coefficients"].numpy() + float(state["intercept"])
