"""The metrics of one period."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from lsat_ray.errors import LsatError
from lsat_ray.evaluation import metrics

LABELS = np.array([0, 1, 1, 0, 1, 0])
SCORES = np.array([0.2, 0.7, 0.4, 0.4, 0.9, 0.6])
USERS = np.array([0, 0, 1, 1, 2, 2])


def test_summarise_agrees_with_scikit_learn_and_keeps_the_columns_of_metrics_parquet():
    result = metrics.summarise(LABELS, SCORES, USERS)
    columns = ("auc", "auc_low", "auc_high", "log_loss", "accuracy", "rows", "positives", "gauc", "ece")
    assert tuple(result) == columns  # new ones at the end: files of earlier runs stay readable
    assert result["auc"] == pytest.approx(roc_auc_score(LABELS, SCORES))
    assert result["auc_low"] < result["auc"] < result["auc_high"]
    assert result["log_loss"] == pytest.approx(log_loss(LABELS, SCORES))
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert (result["rows"], result["positives"]) == (6, 3)
    assert result["gauc"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert result["ece"] == pytest.approx((0.2 + 0.3 + 0.1 + 0.2 + 0.6) / 6)  # the two scores of .4 share a bin


def test_the_interval_is_by_user_and_not_by_sample():
    """Samples repeated within a user say nothing new: the interval must not shrink."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, 40, 300)
    label = rng.integers(0, 2, 300)
    score = 1 / (1 + np.exp(-(label + rng.normal(size=300))))
    once = metrics.summarise(label, score, user)
    nine = metrics.summarise(np.tile(label, 9), np.tile(score, 9), np.tile(user, 9))
    assert nine["auc_high"] - nine["auc_low"] == pytest.approx(once["auc_high"] - once["auc_low"], rel=1e-6)


def test_log_loss_is_of_probabilities_and_not_of_decisions():
    """The reference code's log-loss is of 0/1 predictions: it could not tell .51 from .99."""
    sure = metrics.summarise(LABELS, np.where(LABELS == 1, 0.99, 0.01), USERS)["log_loss"]
    unsure = metrics.summarise(LABELS, np.where(LABELS == 1, 0.51, 0.49), USERS)["log_loss"]
    assert sure < 0.02 < 0.6 < unsure


def test_log_loss_of_a_certain_mistake_is_finite():
    result = metrics.summarise(np.array([0, 1]), np.array([1.0, 1.0]), np.array([0, 1]))
    assert result["log_loss"] == pytest.approx(-np.log(metrics.CLIP) / 2, rel=1e-3)


def test_scores_that_are_no_probabilities_have_an_auc_only():
    result = metrics.summarise(LABELS, SCORES * 7 - 3, USERS, probability=False)
    assert result["auc"] == pytest.approx(roc_auc_score(LABELS, SCORES))
    assert np.isnan([result["log_loss"], result["accuracy"], result["ece"]]).all()
    with pytest.raises(LsatError, match=r"row 0: -1\.6 is no probability"):
        metrics.summarise(LABELS, SCORES * 7 - 3, USERS)


@pytest.mark.parametrize("labels", [np.ones(4), np.zeros(4)])
def test_one_class_has_nan_auc_and_the_rest(labels):
    result = metrics.summarise(labels, np.full(4, 0.6), np.arange(4))
    assert np.isnan([result["auc"], result["auc_low"], result["auc_high"]]).all()
    assert result["log_loss"] > 0
    assert result["accuracy"] == labels[0]


def test_no_rows_are_no_crash():
    result = metrics.summarise(np.array([]), np.array([]), np.array([]))
    assert result["rows"] == 0
    assert np.isnan(result["auc"])
    assert np.isnan(metrics.auc(np.array([]), np.array([])))
    assert np.isnan(metrics.ece(np.array([]), np.array([])))
    assert np.isnan(metrics.gauc(np.array([]), np.array([]), np.array([])))


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.5], "one score per label"),
        ([0], [0.5], "one user per label"),
        ([0, 1], [0.5, np.nan], "row 1: score nan"),
        ([0, 2], [0.5, 0.5], "row 1: label 2"),
    ],
)
def test_bad_input_names_the_row(labels, scores, message):
    with pytest.raises(LsatError, match=message):
        metrics.summarise(np.array(labels), np.array(scores), np.arange(2))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=60))
def test_user_aucs_equal_scikit_learn_user_by_user(rows):
    user, label, score = (np.array(c) for c in zip(*rows, strict=True))
    names, values, counts = metrics.user_aucs(label, score, user)
    assert names.tolist() == sorted(set(user.tolist()))
    for name, value, count in zip(names, values, counts, strict=True):
        mine = user == name
        assert count == mine.sum()
        if len(set(label[mine])) == 2:
            assert value == pytest.approx(roc_auc_score(label[mine], score[mine]))
        else:
            assert np.isnan(value)


def test_gauc_weights_by_samples_and_leaves_out_users_of_one_class():
    user = np.array([0, 0, 1, 1, 1, 1, 2])
    label = np.array([0, 1, 1, 0, 0, 0, 1])
    score = np.array([0.1, 0.9, 0.1, 0.2, 0.3, 0.4, 0.5])  # user 0: AUC 1, user 1: AUC 0, user 2: one class
    assert metrics.gauc(label, score, user) == pytest.approx(2 / 6)


def test_ece_is_the_mean_gap_between_said_and_seen():
    label = np.r_[np.ones(8), np.zeros(2), np.ones(1), np.zeros(9)]
    assert metrics.ece(label, np.r_[np.full(10, 0.8), np.full(10, 0.1)]) == pytest.approx(0)
    assert metrics.ece(label, np.r_[np.full(10, 1.0), np.full(10, 0.1)]) == pytest.approx(0.1)


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=30))
def test_auc_or_log_loss_is_the_auc_where_there_are_two_classes(rows):
    label, logit = np.array([int(y) for y, _ in rows]), np.array([float(s) for _, s in rows])
    value = metrics.auc_or_log_loss(label, logit)
    if 0 < label.sum() < len(label):
        assert value == pytest.approx(roc_auc_score(label, logit))
    else:
        assert value == pytest.approx(-log_loss(label, 1 / (1 + np.exp(-logit)), labels=[0, 1]))


def test_one_class_has_an_order_the_lowest_log_loss_first():
    """Without it the first candidate would win whatever it says (issue 11, part 3)."""
    ones, zeros = np.ones(3), np.zeros(3)
    assert metrics.auc_or_log_loss(ones, np.full(3, 2.0)) > metrics.auc_or_log_loss(ones, np.full(3, 1.0))
    assert metrics.auc_or_log_loss(zeros, np.full(3, -2.0)) > metrics.auc_or_log_loss(zeros, np.full(3, -1.0))
    assert metrics.auc_or_log_loss(ones, np.full(3, -1e4)) == -1e4  # certain mistakes stay finite, and comparable


@pytest.mark.parametrize("seed", range(20))
def test_equal_rankings_have_equal_values_to_the_bit(seed):
    """Pairs are counted: the order of the rows and the size of the margins leave no trace in the last digit."""
    rng = np.random.default_rng(seed)
    label, margin = (rng.random(57) < 0.7).astype(int), rng.normal(size=57)
    order = rng.permutation(57)
    value = metrics.auc_or_log_loss(label, margin)
    assert value == metrics.auc_or_log_loss(label[order], np.exp(3 * margin[order]))
    pairs = (margin[label == 1][:, None] > margin[label == 0]).sum()
    assert value == pairs / (label.sum() * (57 - label.sum()))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=40))
def test_there_is_one_auc_and_it_is_scikit_learns(rows):
    label, score = (np.array(c) for c in zip(*rows, strict=True))
    found = metrics.auc(label, score)
    if len(set(label.tolist())) == 2:
        assert found == pytest.approx(roc_auc_score(label, score), abs=1e-12)
        assert metrics.summarise(label, score, label, probability=False)["auc"] == found
    else:
        assert np.isnan(found)
