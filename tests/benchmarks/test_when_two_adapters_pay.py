"""The figure of the drift study can be drawn again from what is committed."""

from pathlib import Path

import pandas as pd

from benchmarks.when_two_adapters_pay import SETTINGS, draw

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_every_sweep_has_its_column_and_its_differences() -> None:
    tables = {label: pd.read_csv(RESULTS / name / "sweep.csv") for name, label in SETTINGS.items()}
    drawn = draw(tables)
    assert len(drawn.figure.axes) == 3 * len(tables)
    for number, (label, table) in enumerate(tables.items()):
        against_full = drawn.figure.axes[len(tables) + number]
        ensemble = table[(table["against"] == "full-retraining") & (table["strategy"] == "lsat-en(10)")]
        line = against_full.containers[0].lines[0]
        assert sorted(line.get_ydata()) == sorted(ensemble["delta"])
        assert drawn.figure.axes[2 * len(tables) + number].get_xlabel() == label
