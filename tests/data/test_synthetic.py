"""The embedded stream: seedable, exact counts, and a truth that is the truth."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lsat_ray.config import DataConfig, PeriodsConfig, SyntheticConfig
from lsat_ray.data import load, synthetic
from lsat_ray.data.periods import cut
from lsat_ray.data.windows import windows
from lsat_ray.errors import LsatError


def stream(periods: int = 20, samples: int = 10_000, history: int = 10, **knobs: object):
    return synthetic.generate(SyntheticConfig(**knobs), periods, samples, history)


@pytest.mark.parametrize(
    ("periods", "samples", "history", "warmup", "users"),
    [(20, 10_000, 10, 12_000, 400), (7, 1_000, 3, 333, 9), (2, 50, 1, 0, 2)],
)
def test_counts_are_exact(periods, samples, history, warmup, users):
    log = stream(periods, samples, history, warmup=warmup, users=users)
    data = DataConfig(keep_last=samples, history=history, synthetic=SyntheticConfig(warmup=warmup, users=users))
    table = cut(log, data, PeriodsConfig(number=periods))
    assert len(table.samples) == warmup + samples
    assert table.borders[0] == warmup
    assert (np.diff(log.timestamp) > 0).all()


def test_the_default_has_500_samples_a_period_after_the_warmup():
    data, periods = DataConfig(), PeriodsConfig()
    table = cut(load(data, periods), data, periods)
    assert table.borders == tuple(12_000 + 500 * t for t in range(21))


def test_the_seed_is_the_stream():
    assert stream(seed=3).fingerprint() == stream(seed=3).fingerprint()
    assert stream(seed=3).fingerprint() != stream(seed=4).fingerprint()


def test_the_oracle_of_the_default_is_between_80_and_85():
    data, periods = DataConfig(), PeriodsConfig()
    table = cut(load(data, periods), data, periods)
    tested = [table.rows(t) for t in range(11, 21)]
    assert 0.80 < np.mean([roc_auc_score(s.label, s.probability) for s in tested]) < 0.85


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


def by_title_and_period(log, warmup: int, samples: int, periods: int) -> dict[tuple[int, int], set[float]]:
    """Truths of every (item, period) among the targets."""
    targets = windows(log, 10)
    found: dict[tuple[int, int], set[float]] = {}
    rows = targets.row - warmup
    for item, row, p in zip(targets.item, rows, targets.probability, strict=True):
        if row >= 0:
            found.setdefault((int(item), int(row * periods // samples)), set()).add(round(float(p), 9))
    return found


def test_drift_follows_the_periods_borders():
    knobs = {"taste": 0, "positivity": 0, "items": 12, "warmup": 400, "users": 40}
    found = by_title_and_period(stream(5, 1_000, **knobs), 400, 1_000, 5)
    assert all(len(truths) == 1 for truths in found.values())  # it stands still inside a period
    for item in range(8):
        assert len({next(iter(found[item, t])) for t in range(5) if (item, t) in found}) > 1  # and moves between


def test_the_warmup_is_earlier_periods_of_the_same_length():
    period = synthetic._period(np.arange(25 + 30), warmup=25, samples=30, periods=3)
    assert np.bincount(period).tolist() == [5, 10, 10, 10, 10, 10]
    assert (np.diff(period) >= 0).all()


def test_no_drift_is_one_truth_for_ever():
    knobs = {"taste": 0, "positivity": 0, "items": 12, "warmup": 400, "users": 40, "drift": 0}
    found = by_title_and_period(stream(5, 1_000, **knobs), 400, 1_000, 5)
    for item in {i for i, _ in found}:
        assert len(set.union(*(truths for (i, _), truths in found.items() if i == item))) == 1


def test_the_trend_is_stationary_with_the_given_half_life():
    trend = synthetic._trend(np.random.default_rng(0), 4_000, 50, drift=1.2, half_life=4.0)
    assert trend.std() == pytest.approx(1.2, rel=0.02)
    assert trend[:5].std() == pytest.approx(1.2, rel=0.2)
    lagged = np.mean(trend[4:] * trend[:-4]) / np.mean(trend**2)
    assert lagged == pytest.approx(0.5, abs=0.02)


def test_the_knobs_leave_each_other_alone():
    calm, wild = stream(drift=0.0), stream(drift=3.0)
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
    with pytest.raises(LsatError, match=r"data\.keep_last: 3 samples cannot fill 20 periods"):
        load(DataConfig(keep_last=3), PeriodsConfig())
