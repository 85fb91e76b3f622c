"""The gate after RecLoRA: what its ends are, that it repeats, and that it finds who is right where."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from lsat_ray.errors import LsatError
from lsat_ray.scoring.gate import FEATURES, PULLS, fit_gate, fit_sample_gate, gated
from lsat_ray.scoring.model import Model, combine, ensemble, passes


def planted(rows: int = 4000, size: float = 3.0) -> tuple[list[np.ndarray], np.ndarray]:
    """Return two members, each right where it is sure of itself and guessing elsewhere, and the labels."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, rows)
    sign, sure = 2.0 * label - 1.0, rng.random(rows) < 0.5
    noise = rng.normal(0, size / 10, (2, rows))
    return [np.where(sure, size * sign, 0.0) + noise[0], np.where(sure, 0.0, size * sign) + noise[1]], label


@given(st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=1, max_size=20))
def test_without_weights_it_is_the_plain_average(rows: list[tuple[float, float]]) -> None:
    first, second = np.array(rows).T
    np.testing.assert_allclose(gated([first, second], [0.0] * FEATURES), ensemble([first, second], [0.5, 0.5]))


@given(st.lists(st.floats(-5, 5), min_size=FEATURES, max_size=FEATURES), st.floats(-8, 8), st.floats(-8, 8))
def test_a_score_lies_between_its_members(weight: list[float], a: float, b: float) -> None:
    (found,) = gated([np.array([a]), np.array([b])], weight)
    low, high = sorted((expit(a), expit(b)))
    assert low - 1e-12 <= found <= high + 1e-12


def test_an_extreme_gate_is_one_member() -> None:
    margins = [np.array([-1.0, 2.0]), np.array([0.5, -3.0])]
    np.testing.assert_allclose(gated(margins, [50.0, 0, 0, 0, 0]), expit(margins[0]))
    np.testing.assert_allclose(gated(margins, [-50.0, 0, 0, 0, 0]), expit(margins[1]))


def test_it_learns_whom_to_trust_and_repeats() -> None:
    margins, label = planted()
    weight = fit_gate(margins, label)
    assert weight == fit_gate(margins, label)
    assert log_loss(label, gated(margins, weight)) < log_loss(label, ensemble(margins, [0.5, 0.5])) - 0.1
    assert roc_auc_score(label, gated(margins, weight)) > 0.99


@pytest.mark.parametrize("size", [1.0, 0.3])
def test_it_learns_from_margins_of_the_size_that_models_have(size: float) -> None:
    """Their features differ little in size; as they were, a fixed penalty left the gate at one half."""
    margins, label = planted(1200, size)
    known, new = slice(0, 200), slice(200, None)
    score = gated([m[new] for m in margins], fit_gate([m[known] for m in margins], label[known]))
    half, best = ensemble(margins, [0.5, 0.5])[new], expit(margins[0] + margins[1])[new]
    gain, room = (log_loss(label[new], half) - log_loss(label[new], p) for p in (score, best))
    assert gain > 0.7 * room


def test_where_nothing_tells_the_members_apart_it_is_near_one_alpha(rng: np.random.Generator) -> None:
    label = rng.integers(0, 2, 2200)
    margins = [(label - 0.5) + rng.normal(size=2200) for _ in range(2)]
    known, new = slice(0, 200), slice(200, None)
    score = gated([m[new] for m in margins], fit_gate([m[known] for m in margins], label[known]))
    half = ensemble([m[new] for m in margins], [0.5, 0.5])
    assert log_loss(label[new], score) < log_loss(label[new], half) + 0.01


def test_a_model_with_a_gate_takes_a_pass_a_member() -> None:
    model = Model("reclora-gate(10)", 3, "gated-ensemble", ("a", "b"), (0.1, 0.2, 0.3, 0.4, 0.5))
    assert [p.adapters for p in passes(model)] == [("a",), ("b",)]
    margins = [np.array([0.3, -2.0]), np.array([1.0, 1.0])]
    assert np.array_equal(combine(model, margins), gated(margins, model.weights))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(LsatError, match="two members and 5 weights"):
        gated([np.zeros(1)], [0.0] * FEATURES)
    with pytest.raises(LsatError, match="no rows"):
        fit_gate([np.empty(0), np.empty(0)], np.empty(0))


def varied(rng: np.random.Generator, rows: int = 4000) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Return two members, a feature that says which of them is right, beside one that says nothing, and labels."""
    label = rng.integers(0, 2, rows)
    x = rng.normal(size=(rows, 2))
    right = np.where(label == 1, 2.0, -2.0) + rng.normal(scale=0.3, size=rows)
    wrong = rng.normal(scale=2.0, size=rows)
    first = np.where(x[:, 0] > 0, right, wrong)
    return [first, np.where(x[:, 0] > 0, wrong, right)], x, label


def test_a_sample_gate_trusts_whom_the_feature_points_at(rng: np.random.Generator) -> None:
    margin, x, label = varied(rng)
    known, new = slice(0, 3000), slice(3000, None)
    gate = fit_sample_gate([m[known] for m in margin], x[known], label[known], np.arange(3000))
    assert np.array_equal(
        gate.weight, fit_sample_gate([m[known] for m in margin], x[known], label[known], np.arange(3000)).weight
    )
    assert gate.weight[0] > 5 * abs(gate.weight[1])
    alpha = fit_sample_gate([m[known] for m in margin], x[known, :0], label[known], np.arange(3000))
    by_sample, by_one = (
        log_loss(label[new], g.mixed([m[new] for m in margin], v[new])) for g, v in ((gate, x), (alpha, x[:, :0]))
    )
    assert by_sample < by_one - 0.1
    assert np.ptp(alpha.share(x[:, :0])) == 0


def test_the_newest_rows_choose_the_penalty(rng: np.random.Generator) -> None:
    """A feature that pointed the right way in old rows and the wrong way in the newest quarter is not believed."""
    margin, x, label = varied(rng)
    turned = x.copy()
    turned[3000:, 0] *= -1
    steady, changed = (fit_sample_gate(margin, v, label, np.arange(4000)) for v in (x, turned))
    assert changed.pull > steady.pull and changed.pull == PULLS[-1]


def test_a_sample_gate_needs_rows() -> None:
    with pytest.raises(LsatError, match="no rows"):
        fit_sample_gate([np.empty(0), np.empty(0)], np.empty((0, 1)), np.empty(0), np.empty(0))
