"""The head over margin and counters: it never sees labels after t, and shows what the margin adds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lsat_ray.baselines.side_head import apply_side_head, fit_side_head, with_side
from lsat_ray.data.periods import Periods
from lsat_ray.errors import LsatError


def rates(rng: Any, user: Any, item: Any, history: Any, liked: Any) -> np.ndarray:
    return rng.random(len(user)) < np.where(item % 2 == 0, 0.2, 0.8)


@pytest.fixture(scope="module")
def periods(plant: Any) -> Periods:
    made = plant(rates, periods=5, rows=400)
    return replace(made, borders=made.borders[1:], fingerprint="rates")


@pytest.fixture(scope="module")
def margin(periods: Periods) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.where(periods.samples.label == 1, 0.7, -0.7) + rng.standard_normal(len(periods.samples))


def test_the_head_is_the_logistic_regression_that_it_says(periods: Periods) -> None:
    rng = np.random.default_rng(1)
    margin, side = rng.standard_normal(20_000) * 3 + 2, rng.standard_normal((20_000, 2))
    logit = 0.5 * (margin - 2) - 1.0 * side[:, 0] + 0.3
    label = (rng.random(20_000) < 1 / (1 + np.exp(-logit))).astype(int)
    head = fit_side_head(margin, side, label)
    assert head.weights / head.scale == pytest.approx([0.5, -1.0, 0.0], abs=0.05)
    found = apply_side_head(head, margin, side)
    assert np.abs(found - 1 / (1 + np.exp(-logit))).max() < 0.05
    assert ((found > 0) & (found < 1)).all()


def test_margin_and_counters_together_beat_either(periods: Periods, margin: np.ndarray) -> None:
    label = periods.rows(4).label
    both = roc_auc_score(label, with_side(periods, margin, 3))
    alone = roc_auc_score(label, margin[periods.span(4)])
    counters = roc_auc_score(label, with_side(periods, np.zeros(len(margin)), 3))
    assert both > max(alone, counters) + 0.02


@pytest.mark.parametrize("side", ["online", "period"])
def test_the_head_never_sees_labels_after_t(periods: Periods, margin: np.ndarray, side: Any) -> None:
    """Labels of D_(t+1) and later are turned over: the head stays; online counts move with the rows, by period none."""
    stop = periods.borders[3]
    label = periods.samples.label.copy()
    label[stop:] = 1 - label[stop:]
    poisoned = replace(periods, samples=replace(periods.samples, label=label))
    rubbish = margin.copy()
    rubbish[periods.borders[4] :] = np.nan  # and no margin past D_(t+1) is needed
    before, after = with_side(periods, margin, 3, side), with_side(poisoned, rubbish, 3, side)
    assert before[0] == after[0]  # the first row of D_4: nothing that was turned over lies before it
    assert np.array_equal(before, after) == (side == "period")
    label = periods.samples.label.copy()
    label[stop - 200 : stop] = 1 - label[stop - 200 : stop]
    earlier = replace(periods, samples=replace(periods.samples, label=label))
    assert with_side(earlier, margin, 3, side)[0] != before[0]


def test_only_rows_with_a_margin_of_the_periods_are_fitted_on(periods: Periods, margin: np.ndarray) -> None:
    known = np.full(len(margin), np.nan)
    for part in (periods.positions(2, "validation"), periods.positions(3, "validation"), periods.span(4)):
        known[part] = margin[part]
    some = with_side(periods, known, 3)
    known[: periods.borders[0]] = 100.0  # the warm-up is the backbone's own training data
    assert np.array_equal(some, with_side(periods, known, 3))
    assert not np.array_equal(some, with_side(periods, margin, 3))


def test_what_is_missing_is_said(periods: Periods, margin: np.ndarray) -> None:
    nothing = np.full(len(margin), np.nan)
    with pytest.raises(LsatError, match="margins of D_4 and of rows before it are needed"):
        with_side(periods, nothing, 3)
    with pytest.raises(LsatError, match="margins of D_4"):
        with_side(periods, np.where(np.arange(len(margin)) == periods.borders[3] + 5, np.nan, margin), 3)
    with pytest.raises(LsatError, match="hold one class"):
        fit_side_head(np.zeros(3), np.zeros((3, 2)), np.ones(3))
