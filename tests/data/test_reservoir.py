"""The reservoir: its law, its continuity, and what it may hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsat_ray.data.periods import Periods
from lsat_ray.data.reservoir import draw, reservoir


@given(st.integers(0, 300), st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=100)
def test_size_order_and_determinism(arrivals: int, size: int, seed: int) -> None:
    held = draw(arrivals, size, seed)
    assert len(held) == min(arrivals, size) == len(set(held.tolist()))
    assert np.array_equal(held, np.sort(held))
    assert np.array_equal(held, draw(arrivals, size, seed))
    assert not len(held) or (held.min() >= 0 and held.max() < arrivals)


@given(st.integers(1, 300), st.integers(0, 100), st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=100)
def test_a_longer_stream_continues_the_same_reservoir(arrivals: int, more: int, size: int, seed: int) -> None:
    before, after = set(draw(arrivals, size, seed).tolist()), set(draw(arrivals + more, size, seed).tolist())
    assert {k for k in after if k < arrivals} <= before


def test_every_arrival_is_held_with_probability_size_over_k() -> None:
    """4000 reservoirs of 10 after 50 arrivals: each arrival is in a fifth of them (binomial, 5 sigma)."""
    runs, size, arrivals = 4000, 10, 50
    count = np.zeros(arrivals)
    entered = 0
    for seed in range(runs):
        count[draw(arrivals, size, seed)] += 1
        entered += arrivals - 1 in draw(arrivals, size, seed)
    share = size / arrivals
    spread = 5 * np.sqrt(share * (1 - share) / runs)
    assert np.abs(count / runs - share).max() < spread
    assert abs(entered / runs - size / arrivals) < spread


def test_victims_are_uniform() -> None:
    """Pairs are held together as often as under sampling without replacement."""
    runs, size, arrivals = 4000, 4, 8
    together = np.zeros((arrivals, arrivals))
    for seed in range(runs):
        held = draw(arrivals, size, seed)
        together[np.ix_(held, held)] += 1
    expected = size * (size - 1) / (arrivals * (arrivals - 1))
    off = together[~np.eye(arrivals, dtype=bool)] / runs
    assert np.abs(off - expected).max() < 5 * np.sqrt(expected * (1 - expected) / runs)


@pytest.mark.parametrize("up_to", [0, 1, 3])
def test_it_holds_training_rows_of_passed_periods_only(tiny_periods: Periods, up_to: int) -> None:
    held = reservoir(tiny_periods, up_to, 30, seed=0)
    allowed = {i for t in range(1, up_to + 1) for i in tiny_periods.positions(t, "train")}
    assert set(held.tolist()) <= allowed
    assert len(held) == min(30, len(allowed))
