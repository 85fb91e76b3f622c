"""The audit finds what must not be read, and lets pass what may be."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lsat_ray.config import DataConfig, PeriodsConfig
from lsat_ray.data import movielens
from lsat_ray.data.periods import Periods, Slice, cut
from lsat_ray.data.windows import Samples
from lsat_ray.errors import LsatError
from lsat_ray.evaluation import metrics, slices, warmcold
from lsat_ray.evaluation.leakage import LeakageError, Read, audit, check, immune, poison


def stream(n=60, periods=4, first_row=0):
    """Two rows a second, five histories deep; every period has both classes."""
    rng = np.random.default_rng(0)
    stamp = np.arange(n) // 2 + 100
    samples = Samples(
        row=np.arange(n) + first_row,
        user=rng.integers(0, 5, n).astype(np.int32),
        item=rng.integers(0, 8, n).astype(np.int32),
        label=rng.integers(0, 2, n).astype(np.uint8),
        timestamp=stamp,
        history_item=rng.integers(8, 12, (n, 5)).astype(np.int32),
        history_label=rng.integers(0, 2, (n, 5)).astype(np.uint8),
        history_timestamp=np.repeat((stamp - 1)[:, None], 5, axis=1),
    )
    borders = tuple(np.linspace(0, n, periods + 1).astype(int).tolist())
    return Periods(samples, tuple(f"title {i}" for i in range(12)), borders)


def kinds(findings):
    return [f.kind for f in findings]


def test_all_that_came_before_is_clean_even_with_a_tie_across_the_border():
    periods = stream()
    past = periods.select([Slice(1, "all")]).row
    assert periods.samples.timestamp[past[-1]] == periods.rows(2).timestamp[0]
    assert audit(periods, [Read("long", past)], tested=2) == []
    check(periods, [Read("long", past)], tested=2)


@pytest.mark.parametrize("first_row", [0, 1000])
def test_one_tested_row_among_the_training_rows_is_found(first_row):
    periods = stream(first_row=first_row)
    leak = Read("adapter", np.r_[periods.rows(1).row, periods.rows(2).row[0]])
    findings = audit(periods, [leak], tested=2)
    assert kinds(findings) == ["order"]  # the first tested row is not later than the start: only its order tells
    assert findings[0].rows.tolist() == [15 + first_row]
    with pytest.raises(LeakageError, match="period 2: adapter: reads rows at or after the first tested row"):
        check(periods, [leak], tested=2)


def test_later_periods_are_found_by_order_and_by_time():
    periods = stream()
    findings = audit(periods, [Read("good", periods.rows(1).row), Read("bad", periods.rows(3).row)], tested=2)
    assert kinds(findings) == ["order", "timestamp"]
    assert {f.what for f in findings} == {"bad"}


def test_rows_out_of_time_order_are_found_by_time():
    periods = stream()
    stamp = periods.samples.timestamp.copy()
    stamp[3] = 10**6
    shuffled = replace(periods, samples=replace(periods.samples, timestamp=stamp))
    assert kinds(audit(shuffled, [Read("short", np.array([3]))], tested=2)) == ["timestamp"]


def test_unknown_rows_are_found():
    assert kinds(audit(stream(), [Read("x", np.array([-1, 2, 999]))], tested=2)) == ["unknown"]


def test_histories_may_tie_with_their_target_unless_told_otherwise_and_never_follow_it():
    periods = stream()
    history = periods.samples.history_timestamp.copy()
    history[4, -1] = periods.samples.timestamp[4]
    tied = replace(periods, samples=replace(periods.samples, history_timestamp=history))
    read = [Read("short", np.arange(10))]
    assert audit(tied, read, tested=2) == []
    assert kinds(audit(tied, read, tested=2, ties=False)) == ["history"]
    history[4, -1] += 1
    assert kinds(audit(tied, read, tested=2)) == ["history"]
    history[4, -1] -= 1
    history[20, 0] = 10**6  # a tested row
    assert [f.what for f in audit(tied, read, tested=2)] == ["period 2"]


def test_poison_future_labels_that_give_auc_one_are_caught():
    """A model that has read the tested labels is perfect; both the audit and the poison say why."""
    periods = stream()

    def cheat(seen, tested):
        return seen.rows(tested).label.astype(float)

    def honest(seen, tested):
        past = seen.select([Slice(t, "all") for t in range(1, tested)])
        rate = np.bincount(past.item, past.label, minlength=12) / np.maximum(np.bincount(past.item, minlength=12), 1)
        return rate[seen.rows(tested).item] + seen.rows(tested).history_label.mean(axis=1)

    tested = periods.rows(3)
    assert metrics.auc(tested.label, cheat(periods, 3)) == 1.0
    assert kinds(immune(cheat, periods, 3, "cheat")) == ["poison"]
    assert "order" in kinds(audit(periods, [Read("cheat", tested.row)], 3))
    assert immune(honest, periods, 3, "honest") == []


def test_poison_leaves_the_past_and_the_histories_alone():
    periods = stream()
    poisoned = poison(periods, 3)
    first = periods.borders[2]
    assert (poisoned.samples.label[:first] == periods.samples.label[:first]).all()
    assert (poisoned.samples.label[first:] == 1 - periods.samples.label[first:]).all()
    assert poisoned.samples.history_label is periods.samples.history_label
    assert poisoned.fingerprint != periods.fingerprint


def warmed():
    """Three periods of 15 samples after a warm-up of 15."""
    periods = stream()
    return replace(periods, borders=periods.borders[1:])


def test_warm_items_are_the_targets_of_periods_seen():
    periods = stream()
    items = warmcold.seen_items(periods, [1, 2], warmup=0)
    assert items.tolist() == sorted(set(periods.rows(1).item.tolist()) | set(periods.rows(2).item.tolist()))
    assert items.max() < 8  # the others only stood in histories
    with pytest.raises(LsatError, match="no period 9"):
        warmcold.seen_items(periods, [9], warmup=0)


def test_an_item_of_the_warm_up_is_not_cold_for_a_model_that_was_built_from_it():
    """222 of 1,321 cold samples were targets of the warm-up that backbone and rivals had learnt from."""
    periods = warmed()
    item = periods.samples.item.copy()
    item[3], item[12] = 100, 101
    periods = replace(periods, samples=replace(periods.samples, item=item))
    assert set(warmcold.seen_items(periods, [1], warmup=15)) >= {100, 101}
    newest = warmcold.seen_items(periods, [1], warmup=5)
    assert 101 in newest
    assert 100 not in newest
    assert not {100, 101} & set(warmcold.seen_items(periods, [1], warmup=0))
    with pytest.raises(TypeError):
        warmcold.seen_items(periods, [1])  # whoever asks must say it
    with pytest.raises(LsatError, match="a warm-up of 16 samples, but 15 lie before"):
        warmcold.seen_items(periods, [1], warmup=16)


@pytest.mark.data
@pytest.mark.skipif("LSAT_RAY_DATA" not in os.environ, reason="LSAT_RAY_DATA does not point at real logs")
def test_a_sixth_of_the_cold_samples_of_movielens_was_not_cold():
    data = DataConfig(format="movielens", path="$LSAT_RAY_DATA/ml-latest-small", keep_last=40_000)
    log = movielens.read(Path(os.path.expandvars(str(data.path))), data.positive_above)
    periods = cut(log, data, PeriodsConfig(number=20))
    tested = np.concatenate([periods.rows(t).item for t in range(16, 21)])
    without, whole = (warmcold.seen_items(periods, range(1, 16), warmup=w) for w in (0, periods.borders[0]))
    assert (~np.isin(tested, without)).sum() == 1321
    assert (~np.isin(tested, whole)).sum() == 1321 - 222


def test_slices_of_users_are_complete_and_know_only_what_was_before():
    periods = warmed()
    user = periods.samples.user.copy()
    user[30:33] = 7  # arrives in period 2
    periods = replace(periods, samples=replace(periods.samples, user=user))
    masks = slices.user_slices(periods, 2)
    assert tuple(masks) == slices.NAMES
    assert (masks["active"] ^ masks["inactive"]).all()
    assert (masks["new"] ^ masks["returning"]).all()
    mine = periods.rows(2).user
    assert masks["new"].tolist() == (mine == 7).tolist()
    before = [int((user[:30] == u).sum()) for u in mine]
    assert slices.samples_before(periods, 2).tolist() == before
    assert {u for u, a in zip(mine, masks["active"], strict=True) if a} == {
        u for u in mine if (user[:30] == u).sum() > np.median([(user[:30] == v).sum() for v in set(mine.tolist())])
    }
    later = replace(periods, samples=replace(periods.samples, user=np.r_[user[:45], np.full(15, 7)].astype(np.int32)))
    for name, mask in slices.user_slices(later, 2).items():
        assert (mask == masks[name]).all()  # what comes after the period changes nothing
