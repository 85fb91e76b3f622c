"""Side features see the past only, and agree with the naive rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lsat_ray.baselines.features import HISTORY, STREAM, TITLE, before, side_table, title_vectors, title_years


def coin(rng: Any, user: Any, item: Any, history: Any, liked: Any) -> np.ndarray:
    return rng.random(len(user)) < 0.5


def test_before_counts_earlier_rows_of_the_same_key() -> None:
    total, count = before(np.array([3, 1, 3, 3, 1]), np.array([1.0, 0.0, 0.0, 1.0, 1.0]))
    assert total.tolist() == [0, 0, 1, 1, 0]
    assert count.tolist() == [0, 0, 1, 2, 1]


def test_a_row_does_not_depend_on_its_own_label_or_on_later_rows(plant: Any) -> None:
    periods = plant(coin, rows=200)
    table = side_table(periods)
    assert table.shape == (400, len(HISTORY + STREAM + TITLE)) and np.isfinite(table).all()
    label = periods.samples.label.copy()
    label[250:] = 1 - label[250:]
    other = side_table(replace(periods, samples=replace(periods.samples, label=label), fingerprint="flipped"))
    assert np.array_equal(table[:251], other[:251])
    assert not np.array_equal(table[251:], other[251:])


def test_a_shorter_stream_has_the_same_features(plant: Any) -> None:
    periods = plant(coin, rows=200)
    shorter = replace(periods, samples=periods.samples.take(slice(0, 300)), fingerprint="shorter")
    assert np.array_equal(side_table(periods)[:300], side_table(shorter))


def test_like_share_is_the_naive_one(plant: Any) -> None:
    periods = plant(coin, rows=200)
    assert np.allclose(side_table(periods)[:, 0], periods.samples.history_label.mean(axis=1) - 0.5)


def test_years_and_titles() -> None:
    titles = ("Alpha (1995)", "Beta", "Gamma (2001-2004)", "1984 (1956)", "(no year) Delta (12)")
    assert np.array_equal(title_years(titles), [1995, np.nan, 2001, 1956, np.nan], equal_nan=True)
    vectors = title_vectors(titles)
    assert vectors.shape == (5, 256) and np.array_equal(vectors, title_vectors(titles))
    assert np.allclose(np.linalg.norm(vectors[:, :-16], axis=1), [1, 1, 1, 1, 1])
