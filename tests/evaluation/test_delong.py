"""DeLong in O(n log n) against the O(nm) definition, and Obuchowski's clustered variance against resampled users."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from lsat_ray.errors import LsatError
from lsat_ray.evaluation import delong, metrics
from lsat_ray.evaluation.delong import midranks


def brute_force(labels, scores):
    """AUC and DeLong's variance from the kernel matrix of every positive with every negative."""
    truth = labels.astype(bool)
    kernel = np.where(scores[truth][:, None] == scores[~truth], 0.5, scores[truth][:, None] > scores[~truth])
    v10, v01 = kernel.mean(axis=1), kernel.mean(axis=0)
    return v10.mean(), v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01)


@st.composite
def rows(draw):
    n = draw(st.integers(4, 40))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    labels[:4] = (0, 0, 1, 1)
    scores = draw(st.lists(st.integers(-5, 5), min_size=n, max_size=n))  # few values, so that ties are common
    return labels, np.array(scores, dtype=float)


def clustered(rng, users=30, per_user=20):
    """Labels, scores and users; the score knows the user's share of likes and is better for some users than others."""
    liking, skill = rng.normal(size=(2, users))
    user = np.repeat(np.arange(users), rng.poisson(per_user, users))
    signal = rng.normal(size=len(user))
    label = (liking[user] + signal + rng.normal(size=len(user)) > 0).astype(int)
    return label, 0.5 * (liking + skill)[user] + signal + rng.normal(size=len(user)), user


@given(rows())
def test_the_variance_of_independent_samples_equals_the_definition(case):
    labels, scores = case
    auc, spread, _ = delong.variance(labels, scores)
    expected, expected_spread = brute_force(labels, scores)
    assert auc == pytest.approx(expected, abs=1e-12)
    assert spread == pytest.approx(expected_spread, abs=1e-12)


@given(rows())
def test_one_sample_per_user_is_delongs_case(case):
    labels, scores = case
    users = np.random.default_rng(0).permutation(len(labels))
    assert delong.interval(labels, scores, users) == pytest.approx(delong.interval(labels, scores), abs=1e-12)


@given(rows())
def test_auc_equals_scikit_learn(case):
    labels, scores = case
    assert delong.interval(labels, scores).auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(rows())
def test_inverted_labels_mirror_the_interval(case):
    labels, scores = case
    users = np.arange(len(labels)) // 2
    auc, low, high = delong.interval(labels, scores, users)
    mirrored = delong.interval(1 - labels, scores, users)
    assert mirrored.auc == pytest.approx(1 - auc, abs=1e-12)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - high, 1 - low), abs=1e-12, nan_ok=True)


def test_the_clustered_variance_is_that_of_resampled_users():
    rng = np.random.default_rng(1)
    label, score, user = clustered(rng, users=80)
    of = [np.flatnonzero(user == u) for u in range(80)]
    drawn = [np.concatenate([of[u] for u in rng.integers(0, 80, 80)]) for _ in range(1500)]
    spread = np.var([metrics.auc(label[i], score[i]) for i in drawn])
    assert delong.variance(label, score, user)[1] == pytest.approx(spread, rel=0.15)
    assert delong.variance(label, score)[1] < 0.9 * spread  # samples taken for independent promise too much


@pytest.mark.parametrize("users", [13, 60])
def test_the_interval_holds_the_true_auc_as_often_as_it_says(users):
    """Few users are the rule: a period's validation split has 1 to 13 of them."""
    rng = np.random.default_rng(2)
    truth = delong.interval(*clustered(rng, 20_000)[:2]).auc
    hits = {"users": 0, "samples": 0}
    for _ in range(400):
        label, score, user = clustered(rng, users)
        for name, by in (("users", user), ("samples", None)):
            _, low, high = delong.interval(label, score, by)
            hits[name] += low <= truth <= high
    assert 0.92 <= hits["users"] / 400 <= 0.975
    assert hits["samples"] < hits["users"]


def test_one_class_is_nan_and_not_a_crash():
    assert np.isnan(delong.interval(np.ones(3), np.arange(3.0))).all()


@pytest.mark.parametrize("users", [None, np.array([0, 1, 2]), np.array([0, 0, 0])])
def test_a_class_of_a_single_user_has_an_auc_but_no_interval(users):
    auc, low, high = delong.interval(np.array([1, 0, 0]), np.array([2.0, 1.0, 3.0]), users)
    assert auc == 0.5
    assert np.isnan([low, high]).all()


def test_unequal_lengths_and_nan_scores_are_refused():
    with pytest.raises(LsatError, match="one score per label"):
        delong.variance(np.array([0, 1]), np.array([1.0, 2.0, 3.0]))
    with pytest.raises(LsatError, match="one user per label"):
        delong.variance(np.array([0, 1]), np.array([1.0, 2.0]), np.array([1]))
    with pytest.raises(LsatError, match="not finite"):
        delong.variance(np.array([0, 1]), np.array([1.0, np.nan]))


@given(st.lists(st.integers(-3, 3), max_size=30))
def test_midranks_are_scipys(values: list[int]) -> None:
    assert midranks(np.array(values, dtype=float)).tolist() == rankdata(values).tolist()
