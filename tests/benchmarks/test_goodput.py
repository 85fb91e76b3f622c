"""The share of training and scoring, the backbone apart."""

from __future__ import annotations

import pandas as pd

from benchmarks.goodput import goodput


def frame(rows: list[tuple[str, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["stage", "start", "seconds"]).assign(subject="")


def test_a_pause_between_two_processes_is_left_out() -> None:
    first = [("start-up", 0.0, 2.0), ("train", 2.0, 8.0)]
    paused = [*first, ("start-up", 1000.0, 2.0), ("train", 1002.0, 8.0), ("start-up", 5000.0, 1.0)]
    found = goodput(frame(paused))
    assert found["wall_s"] == 21.0
    assert found["goodput"] == round(16.0 / 21.0, 4)


def test_overlaps_count_once_and_the_backbone_is_taken_off() -> None:
    rows = [
        ("backbone", 0.0, 10.0),
        ("start-up", 0.0, 12.0),
        ("train", 12.0, 50.0),
        ("search", 60.0, 10.0),  # 2 s of it beside training
        ("serve", 70.0, 10.0),
        ("score", 75.0, 10.0),  # 5 s of it beside the endpoint
        ("report", 85.0, 5.0),
    ]
    found = goodput(frame(rows))
    assert found["wall_s"] == 80.0
    assert found["goodput"] == round((50.0 + 15.0) / 80.0, 4)
    assert found["seconds"]["search"] == 8.0 and found["seconds"]["start-up"] == 2.0
