"""The embedded stream: seedable, exact counts, and a truth that is the truth."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lsat_ray.config import DataConfig, PeriodsConfig, SyntheticConfig
from lsat_ray.data import load, synthetic
from lsat_ray.data.periods import cut
from lsat_ray.data.windows import concatenate, windows
from lsat_ray.errors import LsatError


def stream(samples: int = 10_000, history: int = 10, **knobs: object):
    return synthetic.generate(SyntheticConfig(**knobs), samples, history)


def log_loss(truth: np.ndarray, score: np.ndarray) -> float:
    return -float(np.mean(truth * np.log(score) + (1 - truth) * np.log(1 - score)))


@pytest.mark.parametrize(
    ("periods", "samples", "history", "warmup", "users"),
    [(20, 10_000, 10, 12_000, 400), (7, 1_000, 3, 333, 9), (2, 50, 1, 0, 2)],
)
def test_counts_are_exact(periods, samples, history, warmup, users):
    log = stream(samples, history, warmup=warmup, users=users)
    data = DataConfig(keep_last=samples, history=history, synthetic=SyntheticConfig(warmup=warmup, users=users))
    table = cut(log, data, PeriodsConfig(number=periods))
    assert len(table.samples) == warmup + samples
    assert table.borders[0] == warmup
    assert (np.diff(log.timestamp) > 0).all()


def test_the_default_has_500_samples_a_period_after_the_warmup():
    data, periods = DataConfig(), PeriodsConfig()
    table = cut(load(data), data, periods)
    assert table.borders == tuple(12_000 + 500 * t for t in range(21))


def test_the_seed_is_the_stream():
    assert stream(seed=3).fingerprint() == stream(seed=3).fingerprint()
    assert stream(seed=3).fingerprint() != stream(seed=4).fingerprint()


def test_the_default_can_be_learned_and_needs_both_kinds_of_preference():
    data, periods = DataConfig(), PeriodsConfig()
    table = cut(load(data), data, periods)
    tested = [table.rows(t) for t in range(11, 21)]
    truth = np.mean([roc_auc_score(s.label, s.probability) for s in tested])
    long, short, mixture = (np.mean([roc_auc_score(s.label, s.oracles[:, j]) for s in tested]) for j in range(3))
    assert 0.80 < truth < 0.90
    assert min(long, short) > 0.65
    assert max(long, short) + 0.01 < mixture < truth - 0.005


@pytest.mark.parametrize(
    "other",
    [
        PeriodsConfig(number=8),
        PeriodsConfig(number=16),
        PeriodsConfig(number=16, cut="time"),
        PeriodsConfig(cut="dates", dates=("2020-05-15", "2020-05-25", "2020-06-01", "2020-06-20")),
    ],
)
@pytest.mark.parametrize("keep_last", [None, 6_000])
def test_every_cut_of_a_stream_has_the_same_labels(other, keep_last):
    data = DataConfig(keep_last=keep_last)
    whole = cut(load(data), data, PeriodsConfig()).samples
    again = cut(load(data), data, other).samples
    for name in ("user", "item", "label", "timestamp", "probability"):
        assert np.array_equal(getattr(whole, name), getattr(again, name)), name


def test_the_probability_is_calibrated_and_carries_the_noise():
    log = stream(samples=40_000, noise=0.1)
    assert log.probability is not None
    assert log.probability.min() >= 0.1
    assert log.probability.max() <= 0.9
    for low in np.arange(0.1, 0.9, 0.1):
        inside = (log.probability >= low) & (log.probability < low + 0.1)
        error = log.label[inside].mean() - log.probability[inside].mean()
        assert abs(error) < 4 * 0.5 / np.sqrt(inside.sum())


def test_without_noise_and_with_strong_effects_labels_are_certain():
    strong = {"quality": 400.0, "drift": 0.0, "noise": 0.0}
    log = stream(**strong)
    assert roc_auc_score(log.label, log.probability) > 0.995
    assert (log.label == (log.probability > 0.5)).mean() > 0.99


def test_without_effects_nothing_can_be_known():
    log = stream(quality=0, drift=0, taste=0, positivity=0)
    assert np.allclose(log.probability, 0.5)


def logit(log) -> np.ndarray:
    return np.log(log.probability / (1 - log.probability))


BARE = {"taste": 0, "positivity": 0, "quality": 0, "items": 12, "users": 200, "warmup": 2_000, "noise": 0.0}


def steps(log, half_life: float, border: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared move of an item's logit between its neighbouring targets over its expectation, and if across a border."""
    targets = windows(log, 10)
    order = np.lexsort((targets.row, targets.item))
    row, item, value = targets.row[order], targets.item[order], logit(targets)[order]
    same = item[1:] == item[:-1]
    expected = 2 * 3 * 1.2**2 * (1 - 0.5 ** (np.diff(row) / half_life))
    across = row[1:] // border != row[:-1] // border
    return (np.diff(value) ** 2 / expected)[same], across[same]


def test_drift_moves_with_every_sample_and_does_not_know_the_borders():
    move, across = steps(stream(20_000, **BARE, drift=1.2, half_life=500.0), 500.0, border=100)
    assert across.sum() > 1_000
    assert move[across].mean() == pytest.approx(1, abs=0.15)
    assert move[~across].mean() == pytest.approx(1, abs=0.15)


def test_interest_is_a_users_own_and_short_lived():
    log = stream(20_000, **BARE | {"users": 10}, drift=0.0, interest=1.0, interest_half_life=200.0)
    targets = windows(log, 10)
    value, near, far = logit(targets), [], []
    for item in range(12):
        for user in range(10):
            mine = np.flatnonzero((targets.item == item) & (targets.user == user))
            gap = np.diff(mine)
            near += (value[mine][1:] * value[mine][:-1])[gap < 20].tolist()
            far += (value[mine][1:] * value[mine][:-1])[gap > 1_500].tolist()
    variance = value.var()
    assert variance == pytest.approx(3, rel=0.2)
    assert len(near) > 20 and np.mean(near) / variance > 0.75
    if len(far) > 20:
        assert abs(np.mean(far)) / variance < 0.3
    order = np.lexsort((targets.row, targets.item))
    others = (targets.item[order][1:] == targets.item[order][:-1]) & (
        targets.user[order][1:] != targets.user[order][:-1]
    )
    assert abs(np.mean((value[order][1:] * value[order][:-1])[others])) / variance < 0.15


def test_no_drift_is_one_truth_for_ever():
    log = stream(1_000, **BARE | {"quality": 0.7, "warmup": 400}, drift=0.0)
    for item in range(12):
        assert len(set(log.probability[log.item == item].round(9))) == 1


@pytest.mark.parametrize("half_life", [2.0, 400.0])
def test_the_trend_is_stationary_with_the_given_half_life(half_life):
    trend = synthetic._trend(np.random.default_rng(0), 40_000, 50, drift=1.2, half_life=half_life)
    lag = int(half_life)
    assert trend.std() == pytest.approx(1.2, rel=0.05)
    assert trend[:5].std() == pytest.approx(1.2, rel=0.2)
    lagged = np.mean(trend[lag:] * trend[:-lag]) / np.mean(trend**2)
    assert lagged == pytest.approx(0.5, abs=0.05)


def test_oracles_know_what_they_say_they_know():
    calm = stream(4_000, drift=0.0)
    assert np.allclose(calm.oracles[:, 0], calm.probability)  # nothing is short-lived: long is the truth
    assert np.ptp(calm.oracles[:, 1]) == 0  # and short knows nothing
    assert np.allclose(calm.oracles[:, 2], calm.probability, atol=1e-4)
    hasty = stream(4_000, taste=0, positivity=0, quality=0, interest=0.5)
    assert np.allclose(hasty.oracles[:, 1], hasty.probability)
    assert np.ptp(hasty.oracles[:, 0]) == 0
    assert np.array_equal(stream(4_000, drift=0.3).oracles[:, 0].argsort(), calm.oracles[:, 0].argsort())


@pytest.mark.parametrize("knobs", [{}, {"drift": 2.4}, {"interest": 0.8, "taste": 0.8}, {"noise": 0.0}])
def test_the_oracles_stand_in_order_and_none_beats_the_truth(knobs):
    log = stream(10_000, **knobs)
    long, short, mixture = (log_loss(log.probability, log.oracles[:, j]) for j in range(3))
    assert log_loss(log.probability, log.probability) < mixture <= min(long, short) + 1e-9


def test_partial_oracles_are_calibrated_over_streams():
    """One stream has one trend and 24 qualities; what is expected over their law holds over many streams."""
    logs = [stream(1_500, warmup=500, seed=seed, interest=0.5) for seed in range(60)]
    for j in range(2):
        score = np.concatenate([log.oracles[:, j] for log in logs])
        truth = np.concatenate([log.probability for log in logs])
        for low in (0.2, 0.35, 0.5, 0.65):
            inside = (score >= low) & (score < low + 0.15)
            assert truth[inside].mean() == pytest.approx(score[inside].mean(), abs=0.04), (j, low)


def test_the_oracles_follow_their_rows_into_samples():
    log = stream(1_000)
    targets = windows(log, 10)
    part = targets.take(slice(100, 300))
    assert targets.oracles.shape == (len(targets), 3)
    assert np.array_equal(part.oracles, targets.oracles[100:300])
    at = {int(stamp): n for n, stamp in enumerate(log.timestamp)}
    rows = [at[int(stamp)] for stamp in part.timestamp]
    assert np.array_equal(part.oracles, log.oracles[rows])
    assert concatenate([part, part]).oracles.shape == (400, 3)


def test_the_knobs_leave_each_other_alone():
    calm, wild = stream(drift=0.0), stream(drift=3.0, interest=1.0)
    for name in ("user", "item", "timestamp"):
        assert (getattr(calm, name) == getattr(wild, name)).all()
    assert calm.titles == wild.titles


def test_titles_spell_the_attributes():
    log = stream(items=700)  # more than there are combinations
    assert len(set(log.titles)) == 700
    assert all(len(t.split()) <= 4 for t in log.titles)
    words = [set(group) for group in synthetic.WORDS]
    assert all(w in group for t in log.titles for w, group in zip(t.split(), words, strict=False))
    alike = stream(items=300, taste=0, positivity=0, quality=0, drift=0).titles
    assert alike == stream(items=300).titles


def test_users_and_items_arrive_during_the_periods():
    log = stream(new_users=0.3, new_items=0.3)
    targets = windows(log, 10)
    early = targets.take(slice(0, 12_000))
    late = targets.take(slice(12_000, None))
    for column in ("user", "item"):
        new = np.setdiff1d(getattr(late, column), getattr(early, column))
        share = len(new) / len(np.unique(getattr(targets, column)))
        assert share == pytest.approx(0.3, abs=0.03)
    settled = stream(new_users=0.0, new_items=0.0)
    targets = windows(settled, 10)
    assert len(np.setdiff1d(targets.item[12_000:], targets.item[:12_000])) == 0
    assert len(np.setdiff1d(targets.user[12_000:], targets.user[:12_000])) == 0


def test_a_user_meets_an_item_once():
    log = stream()
    pairs = log.user.astype(np.int64) * 1_000 + log.item
    repeats = 1 - len(np.unique(pairs)) / len(pairs)
    assert repeats < 0.001


def test_too_few_samples_are_explained():
    data = DataConfig(keep_last=3)
    with pytest.raises(LsatError, match=r"periods\.number: 3 samples cannot make 20 periods"):
        cut(load(data), data, PeriodsConfig())
