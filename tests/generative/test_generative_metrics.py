"""Hit and NDCG: by hand, of an oracle, of a random ranker, under ties; the interval over users."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsat_ray.errors import LsatError
from lsat_ray.generative.metrics import FIELDS, above_items, above_target, interval, p_value, ranking_metrics


def test_by_hand() -> None:
    found = ranking_metrics(np.array([0, 1, 4, 5, 9, 10, -1]))
    assert found["hit5"].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert found["hit10"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert found["ndcg10"] == pytest.approx([1, 1 / np.log2(3), 1 / np.log2(6), 1 / np.log2(7), 1 / np.log2(11), 0, 0])
    assert found["ndcg5"][3:].tolist() == [0, 0, 0, 0]


def test_an_oracle_gets_one_everywhere() -> None:
    target = np.arange(50)
    leaves = np.stack([target, *[(target + k) % 50 for k in range(1, 10)]], axis=1)
    assert all((v == 1).all() for v in ranking_metrics(above_target(leaves, target)).values())


def test_a_random_ranker_gets_its_expectation(rng: np.random.Generator) -> None:
    items, rows = 40, 20_000
    above = rng.integers(0, items, rows)
    found = {k: v.mean() for k, v in ranking_metrics(above).items()}
    expected = {k: v.mean() for k, v in ranking_metrics(np.arange(items)).items()}
    assert expected["hit10"] == pytest.approx(10 / items)
    for field in FIELDS:
        assert found[field] == pytest.approx(expected[field], abs=4 * 0.5 / rows**0.5)


@given(above=st.integers(0, 15), ties=st.integers(1, 20))
def test_ties_are_the_mean_over_their_places(above: int, ties: int) -> None:
    found = ranking_metrics(np.array([above]), np.array([ties]))
    places = ranking_metrics(np.arange(above, above + ties))
    for field in FIELDS:
        assert found[field][0] == pytest.approx(places[field].mean())


def test_items_of_one_leaf_share_its_places() -> None:
    size = np.array([3, 1, 2])
    above, ties = above_items(np.array([[0, 2, -1], [1, 0, 2], [1, 0, -1]]), np.array([2, 1, 2]), size)
    assert above.tolist() == [3, 0, -1] and ties.tolist() == [2, 1, 2]


def test_ties_below_one_are_refused() -> None:
    with pytest.raises(LsatError, match="ties"):
        ranking_metrics(np.array([0]), np.array([0]))


def test_the_interval_holds_a_users_rows_together(rng: np.random.Generator) -> None:
    users = np.repeat(np.arange(100), 10)
    value = np.repeat(rng.normal(size=100), 10)
    low, high = interval([value], [users])
    alone = interval([value], [np.arange(1000)])
    assert low < value.mean() < high
    assert (high - low) > 2 * (alone[1] - alone[0])
    assert interval([value - value], [users]) == (0, 0)


def test_the_p_value_is_uniform_without_a_difference_and_small_with_one(rng: np.random.Generator) -> None:
    users = [np.arange(150), np.arange(100, 200)]
    null = [p_value([rng.normal(size=150), rng.normal(size=100)], users, 200, s) for s in range(300)]
    assert np.mean(np.array(null) < 0.1) == pytest.approx(0.1, abs=0.06)
    assert p_value([rng.normal(1, 1, 150), rng.normal(1, 1, 100)], users, 200) == 1 / 201
    assert p_value([np.zeros(150), np.zeros(100)], users) == 1


def test_p_values_do_not_lie_on_the_floor_of_the_resampling(rng: np.random.Generator) -> None:
    """With 2,000 draws the smallest of fifteen p-values was .0075 after Holm, whatever the difference."""
    value = rng.normal(0.5, 1, 5000)
    assert 15 * p_value([value], [np.arange(5000)]) < 0.001


def test_a_users_rows_swap_together(rng: np.random.Generator) -> None:
    value = np.repeat(rng.normal(0.4, 1, size=20), 30)
    together, alone = p_value([value], [np.repeat(np.arange(20), 30)]), p_value([value], [np.arange(600)])
    assert together > alone
