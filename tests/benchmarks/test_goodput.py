"""The share of training and scoring, the backbone apart."""

from __future__ import annotations

import pandas as pd

from benchmarks.goodput import goodput


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
    found = goodput(pd.DataFrame(rows, columns=["stage", "start", "seconds"]))
    assert found["wall_s"] == 80.0
    assert found["goodput"] == round((50.0 + 15.0) / 80.0, 4)
    assert found["seconds"]["search"] == 8.0 and found["seconds"]["start-up"] == 2.0
