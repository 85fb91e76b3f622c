"""The benchmark of kept prefix states runs on a small shape; no time is asserted."""

from __future__ import annotations

import torch

from benchmarks.prefix_states import WORK, measure, predicted


def test_both_ways_give_the_same_margins() -> None:
    rows = list(measure("toy", torch.device("cpu"), 1))
    assert [row["work"] for row in rows] == list(WORK)
    assert all(row["margins_differ_by_at_most"] < 1e-5 and row["gain"]["low"] > 0 for row in rows)


def test_what_was_predicted_counts_tokens() -> None:
    assert predicted("20m", 10, 14, 400) == round((60 + 140 + 400) / 200, 2)
    assert predicted("toy", 1, 1, 1) is None
