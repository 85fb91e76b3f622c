"""A rival that learns through the stream's views gives the scores of one that holds the whole log."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import rivals

from lsat_ray.baselines import classical
from lsat_ray.baselines.features import _CACHE, side_table
from lsat_ray.config import ClassicalRecipe
from lsat_ray.data.periods import Periods
from lsat_ray.data.stream import Stream


def stream_of(periods: Periods) -> Stream:
    """Return the stream after its last period has arrived, as a study meets it."""
    stream = Stream(periods)
    for t in range(1, periods.count + 1):
        stream.arrive(t)
    return stream


def test_side_features_of_known_rows_do_not_depend_on_which_view_came_first(tiny_periods: Periods) -> None:
    stream = stream_of(tiny_periods)
    _CACHE.clear()
    tables = {t: side_table(stream.view(t)) for t in range(1, tiny_periods.count + 1)}  # early views first
    whole = side_table(tiny_periods)
    for t, table in tables.items():
        known = tiny_periods.borders[t]
        assert np.array_equal(table[:known], whole[:known]), t


@pytest.mark.parametrize(
    "name",
    ["mf+side/fine-tuning", "sasrec/full-retraining", "logistic+side/fine-tuning", "mf+side@period/full-retraining"],
)
def test_fit_and_score_through_views(tiny_periods: Periods, name: str) -> None:
    plan, stream = rivals.rows(tiny_periods.fingerprint, 0, ClassicalRecipe(epochs=2))[name], stream_of(tiny_periods)

    def scores(view: Callable[[int], Periods]) -> list[np.ndarray]:
        _CACHE.clear()
        state, found = None, []
        for t in range(1, tiny_periods.count):
            spec = plan(t)
            state = classical.fit(spec, view(t), state if spec.init else None).state
            found.append(classical.score(spec, state, view(t + 1), tiny_periods.rows(t + 1)))
        return found

    for ours, expected in zip(scores(stream.view), scores(lambda _: tiny_periods), strict=True):
        assert np.array_equal(ours, expected)
