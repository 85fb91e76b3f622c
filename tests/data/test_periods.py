"""The three cuts, the 90/10 split, and the protocols' arithmetic."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lsat_ray.config import DataConfig, PeriodsConfig, load
from lsat_ray.data.interactions import Interactions
from lsat_ray.data.periods import Periods, Slice, cut
from lsat_ray.data.windows import windows
from lsat_ray.errors import LsatError

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
REAL = DataConfig(format="movielens", path="unread")
"""Settings of a log that is not synthetic; `cut` does not read it."""


def log_at(stamps: np.ndarray, users: int = 1) -> Interactions:
    """Events at the given seconds, users in turn."""
    n = len(stamps)
    ids = np.array([str(i) for i in range(max(users, 2))])
    user = (np.arange(n) % users).astype(np.int32)
    item = (np.arange(n) % 2).astype(np.int32)
    return Interactions(user, item, item.astype(np.uint8), np.asarray(stamps, np.int64), ids, ids[:2], ("a", "b"))


def data_with(**changes: object) -> DataConfig:
    return REAL.model_copy(update=changes)


def sizes(periods: Periods) -> list[int]:
    return np.diff(periods.borders).tolist()


def test_ml1m_protocol_arithmetic():
    experiment = load(CONFIGS / "ml1m_llama7b.yaml")
    users = 6_040
    log = log_at(978_300_760 + np.arange(200_000 + 10 * users + 5_000) // 3, users)
    periods = cut(log, experiment.data, experiment.periods)
    assert sizes(periods) == [10_000] * 20
    assert periods.borders[-1] == len(periods.samples)
    assert periods.borders[0] == 5_000 == len(periods.warmup())
    for t in (1, 20):
        train, validation = periods.rows(t, "train"), periods.rows(t, "validation")
        assert (len(train), len(validation), len(periods.rows(t))) == (9_000, 1_000, 10_000)
        assert train.row[-1] + 1 == validation.row[0]
    assert experiment.first_test == 11
    assert (experiment.data.positive_above, experiment.data.history) == (3, 10)
    assert (experiment.recipe.lr, experiment.recipe.batch_size) == (1e-3, 128)
    fresh, tuned = (experiment.recipe.paced(fresh) for fresh in (True, False))
    assert (fresh.eval_every, fresh.patience, tuned.eval_every, tuned.patience) == (23, 10, 6, 5)
    assert (experiment.lora.rank, experiment.lora.alpha, experiment.lora.dropout) == (8, 16, 0.05)


def test_amazon_book_protocol_borders():
    experiment = load(CONFIGS / "amazon_book_llama7b.yaml")
    data = experiment.data
    width = 6_575_040  # seconds: 76.1 days
    assert data.start is not None and data.end is not None
    assert data.start + 20 * width == data.end
    first = data.start - 12 * 1000  # one sample before the first period
    stamps = np.r_[first + 1000 * np.arange(11), np.repeat(data.start + width * np.arange(21), 2)]
    stamps[12::2] += width - 1  # first and last second of every bin; the last two lie past the end
    periods = cut(log_at(stamps), data, experiment.periods)
    assert sizes(periods) == [2] * 20
    assert periods.borders[0] == 1
    assert (periods.samples.timestamp < data.end).all()
    assert (data.amazon.min_user_events, data.amazon.sample_users, data.amazon.min_title_events) == (11, 0.2, 50)
    assert experiment.prompt.item_word == "book"


@given(n=st.integers(45, 400), number=st.integers(2, 20), keep=st.integers(40, 400))
@settings(max_examples=80)
def test_count_cut_covers_the_last_samples_evenly(n, number, keep):
    data = data_with(history=3, keep_last=min(keep, n - 3))
    periods = cut(log_at(np.arange(n)), data, PeriodsConfig(number=number))
    assert sum(sizes(periods)) == data.keep_last
    assert max(sizes(periods)) - min(sizes(periods)) <= 1
    assert periods.borders[-1] == len(periods.samples) == n - 3
    for before, after in itertools.pairwise(range(1, number + 1)):
        assert periods.rows(before).timestamp.max() <= periods.rows(after).timestamp.min()


@given(rows=st.integers(2, 500), share=st.sampled_from(["0.1", "0.2", "0.3", "0.7", "0.9"]))
@example(rows=10, share="0.9")  # (1 - 0.9) * 10 is 0.99... in floats
@settings(max_examples=80)
def test_train_and_validation_part_a_period(rows, share):
    samples = windows(log_at(np.arange(2 * rows + 1)), 1)
    periods = Periods(samples, ("a", "b"), (0, rows, 2 * rows), float(share))
    train, validation = periods.rows(2, "train"), periods.rows(2, "validation")
    assert train.row.tolist() + validation.row.tolist() == list(range(rows, 2 * rows))
    assert len(train) == (1 - Fraction(share)) * rows // 1


@given(users=st.lists(st.integers(0, 5), min_size=8, max_size=60), share=st.sampled_from([0.1, 0.25, 0.5]))
@settings(max_examples=80)
def test_by_user_validation_is_the_end_of_every_users_rows(users, share):
    samples = windows(log_at(np.arange(len(users) + 1)), 1)
    samples = replace(samples, user=np.array(users, dtype=samples.user.dtype))
    periods = Periods(samples, ("a", "b"), (0, len(users)), share, validation_by="user")
    train, validation = periods.rows(1, "train"), periods.rows(1, "validation")
    assert sorted([*train.row, *validation.row]) == list(range(len(users)))
    for user in set(users):
        mine, held = train.row[train.user == user], validation.row[validation.user == user]
        assert len(held) == int(share * users.count(user) + 0.5)
        assert not len(held) or not len(mine) or mine.max() < held.min()


def test_a_split_by_user_is_another_cut_and_refused_where_it_is_empty():
    stamps = np.arange(80)
    by_time, by_user = (
        cut(log_at(stamps), data_with(history=1), PeriodsConfig(number=2, validation=0.25, validation_by=by))
        for by in ("time", "user")
    )
    assert by_time.fingerprint != by_user.fingerprint
    with pytest.raises(LsatError, match=r"validation_by user: in period 1"):
        cut(log_at(np.arange(9)), data_with(history=1), PeriodsConfig(number=2, validation=0.1, validation_by="user"))


def test_time_cut_has_equal_spans():
    stamps = np.sort(np.random.default_rng(0).integers(0, 10_000, 500))
    periods = cut(log_at(stamps), data_with(start=1_000, end=9_000), PeriodsConfig(cut="time", number=8))
    for t in range(1, 9):
        inside = periods.rows(t).timestamp
        assert inside.min() >= 1_000 * t
        assert inside.max() < 1_000 * (t + 1)
    assert (periods.warmup().timestamp < 1_000).all()
    assert periods.borders[-1] == len(periods.samples)


def test_dates_cut_takes_the_days_given():
    day = 86_400
    periods = cut(
        log_at(np.arange(0, 10 * day, day // 10)),
        REAL,
        PeriodsConfig(cut="dates", dates=("1970-01-03", "1970-01-04", "1970-01-08")),
    )
    assert sizes(periods) == [10, 40]
    assert periods.rows(1).timestamp.min() == 2 * day
    assert periods.rows(2).timestamp.max() == 7 * day - day // 10


def test_dates_may_name_their_time_zone():
    dates = ("1970-01-01T08:00+08:00", "1970-01-01T00:01", "1970-01-01T00:02+00:00")
    periods = cut(log_at(np.arange(200)), data_with(history=1), PeriodsConfig(cut="dates", dates=dates))
    assert periods.borders == (0, 59, 119)  # second 0 opens the history and is no target


@pytest.mark.parametrize(
    ("data", "periods", "says"),
    [
        ({"keep_last": 91}, {}, "data.keep_last: 91 samples asked for, the log has 90"),
        ({}, {"number": 46}, "periods.number: 90 samples cannot make 46 periods"),
        ({"start": 0, "end": 1_000}, {"cut": "time", "number": 2}, "period 2 has 0 samples"),
        ({}, {"cut": "dates", "dates": ("1970-01-01", "1970-01-02")}, "at least three"),
        ({}, {"cut": "dates", "dates": ("1970-01-03", "1970-01-02", "1970-01-04")}, "must increase"),
        ({}, {"cut": "dates", "dates": ("1970-01-01", "soon", "1970-01-04")}, "periods.dates"),
        ({"end": 0}, {}, "between data.start None and data.end 0"),
        ({"start": 1_000}, {"cut": "time"}, "between data.start 1000"),
    ],
)
def test_cuts_that_cannot_be_made_are_explained(data, periods, says):
    with pytest.raises(LsatError, match=says):
        cut(log_at(np.arange(100)), data_with(**data), PeriodsConfig(**periods))


def test_slices_keep_their_order_and_unknown_periods_are_errors():
    periods = cut(log_at(np.arange(110)), data_with(keep_last=40), PeriodsConfig(number=2))
    rows = periods.select([Slice(2, "validation"), Slice(1, "train")]).row
    assert rows.tolist() == [*range(98, 100), *range(60, 78)]
    for t in (0, 3):
        with pytest.raises(LsatError, match=f"no period {t}; they run from 1 to 2"):
            periods.rows(t)


def test_the_fingerprint_sees_log_windows_and_cut():
    log = log_at(np.arange(200))
    prints = {
        cut(other, data_with(**data), PeriodsConfig(**periods)).fingerprint
        for other, data, periods in [
            (log, {}, {}),
            (log, {"keep_last": 100}, {}),
            (log, {"history": 9}, {}),
            (log, {"ties": "exclude"}, {}),
            (log, {}, {"number": 19}),
            (log, {}, {"validation": 0.2}),
            (log_at(np.arange(200) + 1), {}, {}),
        ]
    }
    assert len(prints) == 7
    assert cut(log, REAL, PeriodsConfig()).fingerprint in prints
