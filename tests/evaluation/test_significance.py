"""Bootstrap and permutation test by user, Holm, and the words."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from lsat_ray.errors import LsatError
from lsat_ray.evaluation import resampling
from lsat_ray.evaluation.significance import (
    RESAMPLES,
    Comparison,
    Key,
    Scored,
    compare,
    compare_all,
    holm,
    short,
    short_p,
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
    assert result.words().startswith("better by .")
    assert compare(bad, good).words().startswith("worse by .")


def test_no_difference_is_said_in_words():
    result = compare(strategy(0.5, 3), strategy(0.5, 4))
    assert result.low < 0 < result.high
    assert result.words().startswith("no difference (")


def clustered(rng, seeds=1, seed_effect=0.0, users=60, n=300, periods=5):
    """Two strategies without a difference in the mean, each better for some users (and some seeds) than for others."""
    skill, luck, liking = rng.normal(0, 0.6, (2, users)), rng.normal(0, 1, (2, seeds)), rng.normal(size=users)
    runs = {}, {}
    for t in range(periods):
        user = rng.choice(rng.choice(users, users // 4, replace=False), n)
        signal = rng.normal(size=n)
        label = (signal + liking[user] + rng.normal(size=n) > 0).astype(int)
        for i, k in itertools.product((0, 1), range(seeds)):
            size = np.exp(skill[i][user] + seed_effect * luck[i][k])
            score = signal * size + liking[user] + rng.normal(size=n)
            runs[i][Key(k, t)] = Scored(np.arange(n) + n * t, user, label, score**3 if i else score)
    return runs


@pytest.mark.parametrize(("seeds", "effect"), [(1, 0.0), (3, 0.3)])
def test_no_difference_is_rarely_called_one_and_the_interval_holds_it(seeds, effect):
    """At 5 %, 150 comparisons of equals give 7.5 false alarms on average; 17 or more have a chance below 1 in 500.

    With seed effects, a test by user alone gives 14 % false alarms: it speaks of these seeds only.
    """
    rng = np.random.default_rng(0)
    found = [compare(*clustered(rng, seeds, effect), 499) for _ in range(150)]
    assert sum(c.p < 0.05 for c in found) <= 16
    assert sum(not c.low <= 0 <= c.high for c in found) <= 16


def test_a_strategy_is_equal_to_itself():
    runs = strategy(0.5, 1)
    result = compare(runs, runs, 200)
    assert (result.difference, result.low, result.high, result.p) == (0, 0, 0, 1)


def test_the_result_is_a_function_of_scores_and_seed():
    a, b = strategy(0.5, 1), strategy(0.6, 2)
    assert compare(a, b, 300) == compare(a, b, 300)
    assert compare(a, b, 300, seed=1) != compare(a, b, 300)


def test_samples_of_a_user_are_drawn_together():
    """Samples repeated within a user say nothing new: neither interval nor p-value may shrink."""
    once = strategy(0.5, 1, n=200), strategy(0.55, 2, n=200)
    nine = [
        {
            k: Scored(np.arange(9 * len(s.row)), np.tile(s.user, 9), np.tile(s.label, 9), np.tile(s.score, 9))
            for k, s in runs.items()
        }
        for runs in once
    ]
    a, b = compare(*once, 400), compare(*nine, 400)
    assert b.high - b.low == pytest.approx(a.high - a.low, rel=1e-3)
    assert b.p == pytest.approx(a.p, abs=0.01)


def test_seeds_are_averaged_and_a_single_seed_serves_all():
    three, one = strategy(0.5, 1, seeds=(0, 1, 2)), strategy(0.5, 5)
    for first, second in ((three, one), (one, three)):
        result = compare(first, second, 200)
        assert result.difference == pytest.approx(mean_auc(first) - mean_auc(second), abs=1e-6)
    with pytest.raises(LsatError, match="share no seed"):
        compare(three, {k._replace(seed=k.seed + 9): s for k, s in three.items()})


def test_the_interval_speaks_of_other_seeds_where_there_are_several():
    """A strategy that wins by luck of one seed in three must not be called better."""
    world = strategy(0.5, 1, seeds=(0, 1, 2))
    lucky = {k: s for k, s in strategy(0.5, 2, seeds=(0, 1, 2)).items() if k.seed} | {
        k: s for k, s in strategy(0.05, 3).items() if k.seed == 0
    }
    mixed, alone = compare(lucky, world), compare({k: s for k, s in lucky.items() if k.seed == 0}, world)
    assert alone.p < 0.001
    assert mixed.p > 0.05
    assert mixed.low < 0.001


def test_backbones_are_drawn_too():
    bases = [strategy(0.5, k) for k in range(4)]
    effect = (0.02, 0.5, 0.5, 0.5)  # the first backbone alone is better with the first strategy
    first = {k._replace(backbone=f"b{i}"): s for i in range(4) for k, s in strategy(effect[i], 10 + i).items()}
    second = {k._replace(backbone=f"b{i}"): s for i, runs in enumerate(bases) for k, s in runs.items()}
    pooled = {k._replace(backbone="", seed=int(k.backbone[1])): s for k, s in first.items()}
    found = compare(first, second)
    assert found.difference == pytest.approx(mean_auc(first) - mean_auc(second), abs=1e-6)
    assert found.low < 0 < found.high
    assert compare(first, bases[0]).low < compare({k: s for k, s in first.items() if k.backbone == "b0"}, bases[0]).low
    assert compare(pooled, bases[0]).difference == pytest.approx(compare(first, bases[0]).difference)
    assert resampling.replicate_draws([("a", 0), ("a", 1), ("b", 0)], 4000).mean(axis=1) == pytest.approx(
        [0.25, 0.25, 0.5], abs=0.05
    )


def test_periods_that_one_of_them_lacks_are_left_out():
    a, b = strategy(0.5, 1), {k: s for k, s in strategy(0.6, 2).items() if k.period != 12}
    assert compare(a, b, 50).periods == (11, 13, 14)
    with pytest.raises(LsatError, match="no common period"):
        compare({k: s for k, s in a.items() if k.period == 12}, b)


def test_different_rows_are_refused():
    a = strategy(0.5, 1)
    b = {k: Scored(s.row + 1, s.user, s.label, s.score) for k, s in a.items()}
    with pytest.raises(LsatError, match="different samples"):
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
    assert compare(only, only, 20).words().startswith("not comparable")


few_rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 3), st.integers(0, 3)), min_size=2)


def pair(rows):
    unit, label, first, second = (np.array(c) for c in zip(*rows, strict=True))
    return resampling.Pair(unit, label, first.astype(float), second.astype(float))


@given(few_rows, st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_the_difference_of_a_draw_is_that_of_repeated_samples(rows, weight):
    it, times = pair(rows), np.array(weight)[[r[0] for r in rows]]
    got = resampling.bootstrap([it], np.array(weight, dtype=np.uint8)[:, None])[0, 0]
    label, first, second = (np.repeat(column, times) for column in (it.label, it.first, it.second))
    if len(set(label.tolist())) == 2:
        assert got == pytest.approx(roc_auc_score(label, first) - roc_auc_score(label, second), abs=1e-6)
    else:
        assert np.isnan(got)


@given(few_rows, st.lists(st.sampled_from([1.0, -1.0]), min_size=4, max_size=4))
def test_signed_sums_are_the_differences_after_swapping_ranks(rows, signs):
    it = pair(rows)
    g = resampling.signed(it, 4)
    if len(set(it.label.tolist())) < 2:
        assert np.isnan(g).all()
        return
    swap = np.array(signs)[it.unit] < 0
    a, b = rankdata(it.first), rankdata(it.second)
    swapped = roc_auc_score(it.label, np.where(swap, b, a)) - roc_auc_score(it.label, np.where(swap, a, b))
    assert g @ np.array(signs) == pytest.approx(swapped, abs=1e-9)


def test_many_users_are_drawn_in_groups_that_keep_a_user_whole():
    rng = np.random.default_rng(0)
    users = [rng.integers(0, 5000, 4000), rng.integers(0, 5000, 3000)]
    parts = resampling.grouped(users)
    frame = pd.DataFrame({"user": np.concatenate(users), "group": np.concatenate(parts)})
    assert frame.groupby("user")["group"].nunique().max() == 1
    assert frame["group"].nunique() == resampling.GROUPS
    few = [rng.integers(10, 90, 400)]
    assert len(np.unique(resampling.grouped(few)[0])) == len(np.unique(few[0]))


def test_groups_of_users_give_the_same_interval(monkeypatch):
    runs = [strategy(x, k, n=1500, users=1200, periods=(1, 2)) for k, x in ((1, 0.5), (2, 0.7))]
    grouped = compare(*runs, 2000)
    monkeypatch.setattr(resampling, "GROUPS", 2000)
    whole = compare(*runs, 2000)
    assert grouped.high - grouped.low == pytest.approx(whole.high - whole.low, rel=0.15)


def test_p_values_do_not_lie_on_the_floor_of_the_resampling():
    """With 2,000 resamples and 37 rows the least adjusted p was .037, in every row that differed."""
    base = strategy(0.5, 1)
    rows = {"full": base} | {f"bad-{k}": strategy(0.8 + 0.1 * k, 2 + k) for k in range(37)}
    found = compare_all(rows, "full")
    assert max(c.p_adjusted for c in found.values()) < 0.037
    worst = found["bad-36"]
    assert worst.at_floor
    assert worst.p == 1 / (RESAMPLES + 1)
    assert worst.words().endswith("p < .0019")


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


def test_scored_sorts_by_row_and_refuses_a_row_twice():
    frame = pd.DataFrame({"row": [3, 1], "user": [0, 1], "label": [1, 0], "score": [0.9, 0.1]})
    assert Scored.of(frame).score.tolist() == [0.1, 0.9]
    with pytest.raises(LsatError, match="row 3 is scored twice"):
        Scored.of(pd.concat([frame, frame.head(1)]))


def test_words():
    assert verdict(0.007, 0.0031, 0.0109, 0.002) == "better by .0070 [+.0031, +.0109], p = .002"
    assert verdict(-0.007, -0.0109, -0.0031, 0.0001) == "worse by .0070 [-.0109, -.0031], p < .001"
    assert verdict(0.0003, -0.001, 0.0016, 0.61) == "no difference (+.0003 [-.0010, +.0016], p = .61)"
    assert [short(x) for x in (0.765, 1.0, -0.02, 0.99999, float("nan"))] == [
        ".7650",
        "1.0000",
        "-.0200",
        "1.0000",
        "-",
    ]


def test_no_difference_never_stands_beside_an_interval_without_zero():
    comparison = Comparison(0.007, 0.003, 0.011, 0.02, 0.2, (11,))
    assert comparison.words() == "not significant after Holm (+.0070 [+.0030, +.0110], p = .20)"
    assert verdict(0.007, -0.001, 0.011, 0.01).startswith("no difference")  # nor `better by` beside one with zero


def test_a_difference_below_the_noise_floor_is_none():
    assert verdict(0.007, 0.003, 0.011, 0.001, noise=0.01).startswith("below the noise floor (+.0070 [")
    assert verdict(0.007, 0.003, 0.011, 0.001, noise=0.005).startswith("better by")


def test_a_p_value_at_the_floor_is_a_bound():
    assert short_p(1 / 20001, at_floor=True) == "< .00005"
    assert short_p(37 / 20001, at_floor=True) == "< .0019"
    assert short_p(1 / 201, at_floor=True) == "< .005"
    assert short_p(0.3, at_floor=True) == "= .30"
