"""The audit finds what must not be read, and lets pass what may be."""

from dataclasses import replace

import numpy as np
import pytest

from lsat_ray.data.periods import Periods, Slice
from lsat_ray.data.windows import Samples
from lsat_ray.errors import LsatError
from lsat_ray.evaluation import metrics, warmcold
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


def test_warm_rows_are_those_whose_item_was_a_target_before():
    periods = stream()
    seen = set(periods.rows(1).item.tolist()) | set(periods.rows(2).item.tolist())
    mask = warmcold.warm(periods, 4, [1, 2])
    assert mask.tolist() == [i in seen for i in periods.rows(4).item.tolist()]
    assert (warmcold.warm(periods, 1, [1])).all()


def test_items_that_only_stood_in_histories_count_when_asked_for():
    periods = stream()
    assert warmcold.seen_items(periods, [1]).max() < 8
    assert set(range(8, 12)) <= set(warmcold.seen_items(periods, [1], by="target+history").tolist())
    with pytest.raises(LsatError, match="no period 9"):
        warmcold.warm(periods, 4, [9])
