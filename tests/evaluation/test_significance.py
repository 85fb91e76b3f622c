"""Bootstrap, Holm and the words."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lsat_ray.errors import LsatError
from lsat_ray.evaluation.significance import (
    Comparison,
    Key,
    Scored,
    _Weighted,
    compare,
    compare_all,
    delong_per_period,
    holm,
    short,
    verdict,
)


def strategy(noise, seed, n=500, users=80, periods=(11, 12, 13, 14), seeds=(0,)):
    """Scores that see the truth through that much noise; rows, users and labels are the same for every strategy."""
    world, own = np.random.default_rng(7), np.random.default_rng(seed)
    runs = {}
    for t in periods:
        user = world.integers(0, users, n)
        signal = world.normal(size=users)[user] * 0.5 + world.normal(size=n)
        label = (signal + world.normal(size=n) > 0).astype(int)
        for k in seeds:
            runs[Key(k, t)] = Scored(np.arange(n) + n * t, user, label, signal + noise * own.normal(size=n))
    return runs


def mean_auc(runs):
    frame = pd.DataFrame([(k.period, roc_auc_score(s.label, s.score)) for k, s in runs.items()], columns=["t", "auc"])
    return frame.groupby("t")["auc"].mean().mean()


def test_a_planted_difference_is_found_and_its_sign_is_right():
    good, bad = strategy(0.2, 1), strategy(1.0, 2)
    result = compare(good, bad)
    assert result.difference == pytest.approx(mean_auc(good) - mean_auc(bad), abs=1e-6)
    assert 0 < result.low < result.difference < result.high
    assert result.p < 0.01
    assert result.verdict.startswith("better by .")
    assert compare(bad, good).verdict.startswith("worse by .")


def test_no_difference_is_said_in_words():
    result = compare(strategy(0.5, 3), strategy(0.5, 4))
    assert result.low < 0 < result.high
    assert result.verdict.startswith("no difference (")


def test_no_difference_is_rarely_called_one():
    """At 5 %, 60 comparisons of equals give 3 false alarms on average; 9 or more have a chance of 1 in 300."""
    alarms = sum(compare(strategy(0.5, 2 * k), strategy(0.5, 2 * k + 1), 300).p < 0.05 for k in range(60))
    assert alarms <= 8


def test_a_strategy_is_equal_to_itself():
    runs = strategy(0.5, 1)
    result = compare(runs, runs, 200)
    assert (result.difference, result.low, result.high, result.p) == (0, 0, 0, 1)


def test_the_result_is_a_function_of_scores_and_seed():
    a, b = strategy(0.5, 1), strategy(0.6, 2)
    assert compare(a, b, 300) == compare(a, b, 300)
    assert compare(a, b, 300, seed=1) != compare(a, b, 300)


def test_rows_of_a_user_are_drawn_together():
    """Rows repeated within a user say nothing new: the interval must not shrink, as it would with rows drawn alone."""
    once = strategy(0.5, 1, n=200), strategy(0.8, 2, n=200)
    nine = [
        {
            k: Scored(np.arange(9 * len(s.row)), np.tile(s.user, 9), np.tile(s.label, 9), np.tile(s.score, 9))
            for k, s in runs.items()
        }
        for runs in once
    ]
    a, b = compare(*once, 400), compare(*nine, 400)
    assert b.high - b.low == pytest.approx(a.high - a.low, rel=1e-3)


def test_seeds_are_averaged_and_a_single_seed_serves_all():
    three, one = strategy(0.5, 1, seeds=(0, 1, 2)), strategy(0.5, 5)
    result = compare(three, one, 200)
    assert result.difference == pytest.approx(mean_auc(three) - mean_auc(one), abs=1e-6)
    assert len(delong_per_period(three, one)) == 12


def test_periods_that_one_of_them_lacks_are_left_out():
    a, b = strategy(0.5, 1), {k: s for k, s in strategy(0.6, 2).items() if k.period != 12}
    assert compare(a, b, 50).periods == (11, 13, 14)
    with pytest.raises(LsatError, match="no common period"):
        compare({k: s for k, s in a.items() if k.period == 12}, b)


def test_different_rows_are_refused():
    a = strategy(0.5, 1)
    b = {k: Scored(s.row + 1, s.user, s.label, s.score) for k, s in a.items()}
    with pytest.raises(LsatError, match="different rows"):
        compare(a, b)


def test_several_comparisons_are_corrected_together():
    table = {"full": strategy(0.5, 1), "good": strategy(0.2, 2), "same": strategy(0.5, 3), "bad": strategy(1.5, 4)}
    found = compare_all(table, "full", 300)
    assert list(found) == ["good", "same", "bad"]
    raw = np.array([c.p for c in found.values()])
    np.testing.assert_allclose([c.p_adjusted for c in found.values()], holm(raw))
    with pytest.raises(LsatError, match="'none' is not among"):
        compare_all(table, "none")


def test_a_period_with_one_class_is_left_out_of_the_mean():
    a, b = strategy(0.2, 1), strategy(1.0, 2)
    clean = compare({k: s for k, s in a.items() if k.period != 14}, b, 200)
    for runs in (a, b):
        s = runs[Key(0, 14)]
        runs[Key(0, 14)] = Scored(s.row, s.user, np.ones_like(s.label), s.score)
    assert compare(a, b, 200).difference == pytest.approx(clean.difference)
    only = {Key(0, 14): a[Key(0, 14)]}
    assert compare(only, only, 20).verdict.startswith("not comparable")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 3)), min_size=2, max_size=30), st.data())
def test_the_weighted_auc_is_the_auc_of_repeated_rows(rows, data):
    user, label, score = (np.array(c) for c in zip(*rows, strict=True))
    weight = np.array(data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4)))
    scored = Scored(np.arange(len(user)), user, label, score.astype(float))
    got = _Weighted(scored, np.arange(4)).auc(weight[:, None].astype(np.float32))[0]
    times = weight[user]
    if len(set(np.repeat(label, times).tolist())) == 2:
        assert got == pytest.approx(roc_auc_score(np.repeat(label, times), np.repeat(score, times)))
    else:
        assert np.isnan(got)


def test_twenty_thousand_rows_take_seconds():
    a, b = (strategy(x, k, n=2000, users=400, periods=range(11, 21)) for k, x in ((1, 0.5), (2, 0.6)))
    begin = time.perf_counter()
    compare(a, b, 1000)
    assert time.perf_counter() - begin < 10


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12).map(np.array)


@given(p_values)
def test_holm_lies_between_the_raw_value_and_bonferroni(p):
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, p * len(p)) + 1e-12).all()


@given(p_values, st.randoms())
def test_holm_keeps_the_order_and_forgets_where_a_test_stood(p, random):
    adjusted = holm(p)
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    shuffle = list(range(len(p)))
    random.shuffle(shuffle)
    np.testing.assert_allclose(holm(p[shuffle]), adjusted[shuffle])


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, np.nan])), [0.03, 0.06, 0.06, np.nan])


def test_delong_per_period_sees_the_planted_difference():
    frame = delong_per_period(strategy(0.2, 1), strategy(1.5, 2))
    assert frame["period"].tolist() == [11, 12, 13, 14]
    assert (frame["difference"] > 0).all()
    assert (frame["p_adjusted"] < 0.05).all()


def test_scored_sorts_by_row_and_refuses_a_row_twice():
    frame = pd.DataFrame({"row": [3, 1], "user": [0, 1], "label": [1, 0], "score": [0.9, 0.1]})
    assert Scored.of(frame).score.tolist() == [0.1, 0.9]
    with pytest.raises(LsatError, match="row 3 is scored twice"):
        Scored.of(pd.concat([frame, frame.head(1)]))


def test_words():
    assert verdict(0.007, 0.0031, 0.0109, 0.002) == "better by .0070 [+.0031, +.0109], p = .002"
    assert verdict(-0.007, -0.0109, -0.0031, 0.0001) == "worse by .0070 [-.0109, -.0031], p < .001"
    assert verdict(0.0003, -0.001, 0.0016, 0.61) == "no difference (+.0003 [-.0010, +.0016], p = .61)"
    assert Comparison(0.007, 0.003, 0.011, 0.02, 0.2, (11,)).verdict.startswith("no difference")
    assert [short(x) for x in (0.765, 1.0, -0.02, 0.99999, float("nan"))] == [
        ".7650",
        "1.0000",
        "-.0200",
        "1.0000",
        "-",
    ]
