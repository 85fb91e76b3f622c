"""Windows of 10: what a history holds, and never holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsat_ray.data.interactions import Interactions
from lsat_ray.data.windows import Samples, concatenate, windows
from lsat_ray.errors import LsatError


def log_of(user: list[int], stamp: list[int], label: list[int] | None = None) -> Interactions:
    """A log whose item is the row of the file, so that a history names its events."""
    n = len(user)
    ids = np.array([str(i) for i in range(n)])
    labels = np.array(label if label is not None else [i % 2 for i in range(n)], dtype=np.uint8)
    return Interactions(
        np.array(user, np.int32), np.arange(n, dtype=np.int32), labels, np.array(stamp, np.int64), ids, ids, tuple(ids)
    )


@st.composite
def logs(draw) -> Interactions:
    n = draw(st.integers(8, 60))
    user = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    stamp = draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))  # few seconds: many ties
    return log_of(user, stamp)


def slow_windows(log: Interactions, history: int, ties: str) -> list[tuple[int, list[int]]]:
    """The definition, event by event: (target row, history rows) in the order of the samples."""
    found = []
    for target in range(len(log)):
        when = (log.timestamp[target], target)
        past = [
            (log.timestamp[row], row)
            for row in range(len(log))
            if log.user[row] == log.user[target]
            and ((log.timestamp[row], row) < when if ties == "file-order" else log.timestamp[row] < when[0])
        ]
        if len(past) >= history:
            found.append((when, [row for _, row in sorted(past)[-history:]]))
    return [(row, past) for (_, row), past in sorted(found)]


@pytest.mark.parametrize("ties", ["file-order", "exclude"])
@given(log=logs(), history=st.integers(1, 4))
@settings(max_examples=60)
def test_windows_are_the_definition(ties, log, history):
    expected = slow_windows(log, history, ties)
    if not expected:
        with pytest.raises(LsatError, match="no user has more than"):
            windows(log, history, ties)
        return
    samples = windows(log, history, ties)
    assert samples.item.tolist() == [row for row, _ in expected]
    assert samples.history_item.tolist() == [past for _, past in expected]
    assert (samples.row == np.arange(len(expected))).all()
    assert (samples.label == log.label[samples.item]).all()
    assert (samples.user == log.user[samples.item]).all()
    assert (samples.timestamp == log.timestamp[samples.item]).all()
    assert (samples.history_label == log.label[samples.history_item]).all()
    assert (samples.history_timestamp == log.timestamp[samples.history_item]).all()


@given(log=logs(), history=st.integers(1, 4))
@settings(max_examples=60)
def test_a_history_never_holds_the_future(log, history):
    for ties in ("file-order", "exclude"):
        try:
            samples = windows(log, history, ties)
        except LsatError:
            continue
        past, now = samples.history_timestamp, samples.timestamp[:, None]
        assert (past < now).all() if ties == "exclude" else (past <= now).all()
        assert (np.diff(past, axis=1) >= 0).all()
        assert (np.diff(samples.timestamp) >= 0).all()
        assert (log.user[samples.history_item] == samples.user[:, None]).all()
        tied = past == now
        assert (samples.history_item[tied] < np.broadcast_to(samples.item[:, None], tied.shape)[tied]).all()


def test_ties_keep_the_order_of_the_file():
    log = log_of([0] * 5, [5, 5, 5, 5, 5])
    assert windows(log, 2, "file-order").history_item.tolist() == [[0, 1], [1, 2], [2, 3]]
    with pytest.raises(LsatError, match="no user has more than 2"):
        windows(log, 2, "exclude")


def test_the_file_need_not_be_sorted():
    samples = windows(log_of([0, 0, 0, 1, 1, 1], [30, 10, 20, 3, 2, 1]), 2)
    assert samples.item.tolist() == [3, 0]
    assert samples.history_item.tolist() == [[5, 4], [1, 2]]


def test_probability_travels_with_the_target():
    log = log_of([0] * 4, [1, 2, 3, 4])
    log = replace(log, probability=np.arange(4) / 4)
    assert windows(log, 2).probability.tolist() == [0.5, 0.75]


def test_take_and_concatenate_keep_rows():
    samples = windows(log_of([0] * 9, list(range(9))), 3)
    parts = [samples.take(slice(4, 6)), samples.take(np.array([0, 2]))]
    joined = concatenate(parts)
    assert isinstance(joined, Samples)
    assert joined.row.tolist() == [4, 5, 0, 2]
    assert joined.history_item.tolist() == samples.history_item[[4, 5, 0, 2]].tolist()
    assert joined.probability is None
    with pytest.raises(LsatError, match="nothing"):
        concatenate([])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": np.array([0, 2, 1], np.uint8)}, "row 1: label 2 is neither 0 nor 1"),
        ({"item": np.array([0, 1, 7], np.int32)}, "row 2: item 7 is not among the 3"),
        ({"user": np.array([0, -1, 1], np.int32)}, "row 1: user -1"),
        ({"timestamp": np.array([1, 2])}, "column timestamp has 2 rows, user has 3"),
        ({"titles": ("a",)}, "3 items but 1 titles"),
    ],
)
def test_interactions_are_checked_on_entry(change, says):
    log = log_of([0, 0, 1], [1, 2, 3])
    columns = {f: getattr(log, f) for f in log.__dataclass_fields__}
    with pytest.raises(LsatError, match=says):
        Interactions(**(columns | change))


def test_the_fingerprint_sees_every_column():
    log = log_of([0, 0, 1], [1, 2, 3])
    columns = {f: getattr(log, f) for f in log.__dataclass_fields__}
    assert Interactions(**columns).fingerprint() == log.fingerprint()
    changes = {
        "user": np.array([0, 1, 1], np.int32),
        "item": np.array([0, 2, 1], np.int32),
        "label": np.array([1, 1, 0], np.uint8),
        "timestamp": np.array([1, 2, 4]),
        "titles": ("x", "1", "2"),
        "item_ids": np.array(["9", "1", "2"]),
    }
    prints = {Interactions(**(columns | {k: v})).fingerprint() for k, v in changes.items()}
    assert len(prints | {log.fingerprint()}) == len(changes) + 1
