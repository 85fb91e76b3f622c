"""What of a long past stands in the prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lsat_ray.config import RetrieverConfig
from lsat_ray.data.periods import Periods
from lsat_ray.data.windows import Samples
from lsat_ray.prompts.retriever import retrieve, unit_rows


@pytest.fixture
def sample(tiny_periods: Periods) -> Samples:
    """Return one sample with a past of five events, before them nothing."""
    one = tiny_periods.samples.take(slice(0, 1))
    return replace(
        one,
        item=np.array([0]),
        history_item=np.array([[-1, 1, 2, 3, 4, 5]]),
        history_label=np.array([[0, 1, 0, 1, 1, 0]]),
        history_timestamp=np.array([[0, 10, 20, 30, 40, 50]]),
    )


TITLES = np.array([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [0.0, 1.0], [0.8, 0.2], [0.7, 0.3]])
"""Items 1, 4, 5 are like item 0, in that order."""


@pytest.mark.parametrize(
    ("order", "events", "expected"),
    [
        ("recent", 2, [4, 5]),
        ("retrieved", 3, [5, 4, 1]),
        ("sequential", 3, [1, 4, 5]),
        ("sequential", 9, [-1, 1, 2, 3, 4, 5]),
        ("retrieved", 6, [-1, 2, 3, 5, 4, 1]),
    ],
)
def test_each_order_takes_the_events_that_it_names(
    sample: Samples, order: str, events: int, expected: list[int]
) -> None:
    found = retrieve(sample, TITLES, RetrieverConfig(order=order, events=events))  # type: ignore[arg-type]
    assert found.history_item[0].tolist() == expected
    past = dict(zip(sample.history_item[0], sample.history_label[0], strict=True))
    assert found.history_label[0].tolist() == [past[i] for i in expected], "each event keeps its label"
    moment = dict(zip(sample.history_item[0], sample.history_timestamp[0], strict=True))
    assert found.history_timestamp[0].tolist() == [moment[i] for i in expected]


def test_what_all_titles_share_does_not_count() -> None:
    vectors = unit_rows(np.array([[100.0, 1.0], [100.0, -1.0], [100.0, 1.0]]))
    assert vectors[0] @ vectors[2] == pytest.approx(1.0)
    assert vectors[0] @ vectors[1] < 0
