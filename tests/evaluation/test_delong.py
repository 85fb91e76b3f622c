"""DeLong in O(n log n) against the O(nm) definition, against scikit-learn, and its algebra."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lsat_ray.errors import LsatError
from lsat_ray.evaluation import delong


def brute_force(labels, scores):
    """AUCs and covariance from the kernel matrix of every positive with every negative."""
    truth = labels.astype(bool)
    kernel = [np.where(s[truth][:, None] == s[~truth], 0.5, s[truth][:, None] > s[~truth]) for s in scores]
    v10 = np.array([k.mean(axis=1) for k in kernel])
    v01 = np.array([k.mean(axis=0) for k in kernel])
    cov = np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]
    return v10.mean(axis=1), cov


@st.composite
def rows(draw, classifiers=2):
    n = draw(st.integers(4, 40))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    labels[:4] = (0, 0, 1, 1)
    values = st.integers(-5, 5)  # few values, so that ties are common
    scores = [draw(st.lists(values, min_size=n, max_size=n)) for _ in range(classifiers)]
    return labels, np.array(scores, dtype=float)


@given(rows())
def test_covariance_equals_the_definition(case):
    labels, scores = case
    aucs, cov = delong.covariance(labels, scores)
    expected, expected_cov = brute_force(labels, scores)
    np.testing.assert_allclose(aucs, expected, atol=1e-12)
    np.testing.assert_allclose(cov, expected_cov, atol=1e-12)


@given(rows())
def test_auc_equals_scikit_learn(case):
    labels, scores = case
    for s in scores:
        assert delong.interval(labels, s).auc == pytest.approx(roc_auc_score(labels, s), abs=1e-12)


@given(rows())
def test_paired_test_is_antisymmetric_and_blind_to_monotone_maps(case):
    labels, (a, b) = case
    forward, backward = delong.paired_test(labels, a, b), delong.paired_test(labels, b, a)
    assert forward.difference == pytest.approx(-backward.difference, abs=1e-12)
    assert forward.p == pytest.approx(backward.p)
    mapped = delong.paired_test(labels, 3 * a + 1, np.exp(b))
    assert mapped.difference == pytest.approx(forward.difference, abs=1e-12)
    assert mapped.p == pytest.approx(forward.p, abs=1e-9)


@given(rows(classifiers=1))
def test_inverted_labels_mirror_the_interval(case):
    labels, (s,) = case
    auc, low, high = delong.interval(labels, s)
    mirrored = delong.interval(1 - labels, s)
    assert mirrored.auc == pytest.approx(1 - auc, abs=1e-12)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_the_same_ranking_twice_is_no_difference():
    labels, s = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.4, 0.5, 0.2, 0.9])
    assert delong.paired_test(labels, s, s * 2) == (0.0, 0.0, 1.0)


def test_interval_holds_the_true_auc_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, hits = 0.7602, 0  # AUC of N(1, 1) against N(0, 1): Phi(1 / sqrt 2)
    for _ in range(400):
        labels = rng.integers(0, 2, 200)
        auc = delong.interval(labels, rng.normal(size=200) + labels)
        hits += auc.low <= truth <= auc.high
    assert 0.92 <= hits / 400 <= 0.975


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 100))
def test_p_values_are_uniform_when_there_is_no_difference(seed):
    rng = np.random.default_rng(seed)
    below = 0
    for _ in range(200):
        labels = rng.integers(0, 2, 150)
        signal = rng.normal(size=150) + labels
        below += delong.paired_test(labels, signal + rng.normal(size=150), signal + rng.normal(size=150)).p < 0.05
    assert below / 200 < 0.12


def test_one_class_is_nan_and_not_a_crash():
    assert np.isnan(delong.interval(np.ones(3), np.arange(3.0))).all()
    assert np.isnan(delong.paired_test(np.zeros(3), np.arange(3.0), np.arange(3.0))).all()


def test_a_single_row_of_a_class_has_an_auc_but_no_interval():
    auc, low, high = delong.interval(np.array([1, 0, 0]), np.array([2.0, 1.0, 3.0]))
    assert auc == 0.5
    assert np.isnan([low, high]).all()


def test_unequal_lengths_and_nan_scores_are_refused():
    with pytest.raises(LsatError, match="one score a label"):
        delong.covariance(np.array([0, 1]), np.array([[1.0, 2.0, 3.0]]))
    with pytest.raises(LsatError, match="not finite"):
        delong.covariance(np.array([0, 1]), np.array([[1.0, np.nan]]))
