"""Histories longer than the samples', and a sample of rows."""

from __future__ import annotations

import numpy as np
import pytest

from lsat_ray.data.interactions import Interactions
from lsat_ray.data.past import few, lengthened
from lsat_ray.data.windows import windows


def log(n: int = 400, users: int = 9, seed: int = 0) -> Interactions:
    """Return a log with many ties."""
    generator = np.random.default_rng(seed)
    return Interactions(
        user=generator.integers(users, size=n),
        item=generator.integers(30, size=n),
        label=generator.integers(2, size=n),
        timestamp=generator.integers(n // 4, size=n) + 1_000_000,
        titles=tuple(f"title {i}" for i in range(30)),
        user_ids=tuple(map(str, range(users))),
        item_ids=tuple(map(str, range(30))),
    )


@pytest.mark.parametrize("ties", ["file-order", "exclude"])
@pytest.mark.parametrize("length", [3, 5, 200])
def test_the_past_is_what_a_window_of_that_length_holds(ties: str, length: int) -> None:
    events = log()
    stream = windows(events, 5, ties)
    wanted = stream.take(np.arange(40, len(stream), 3))
    found = lengthened(stream, wanted, length)
    for i in range(len(wanted)):
        mine = events.user == wanted.user[i]
        order = np.flatnonzero(mine)[np.argsort(events.timestamp[mine], kind="stable")]
        newest = wanted.history_timestamp[i, -1]
        before = [j for j in order if events.timestamp[j] <= newest]
        if ties == "file-order":  # the target's place in the file tells which events of its second came before
            k = int((stream.user[: wanted.row[i]] == wanted.user[i]).sum())
            before = list(order[: 5 + k])
        real = found.history_item[i] >= 0
        before = before[-length:]
        if ties == "exclude":  # a user's very oldest events may be in no sample's history
            assert real.sum() >= min(5, length)
            before = before[-real.sum() :]
        assert real.sum() == len(before)
        assert not real[: length - len(before)].any()
        np.testing.assert_array_equal(found.history_item[i][real], events.item[before])
        np.testing.assert_array_equal(found.history_label[i][real], events.label[before])
        np.testing.assert_array_equal(found.history_timestamp[i][real], events.timestamp[before])


def test_few_rows_are_drawn_once_in_order_and_by_the_seed() -> None:
    stream = windows(log(), 5)
    drawn = few(stream, 50, 1).row
    assert len(np.unique(drawn)) == 50
    assert (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, few(stream, 50, 1).row)
    assert not np.array_equal(drawn, few(stream, 50, 2).row)
    assert few(stream, 10_000, 0) is stream
