"""The map of where two adapters pay: its cells, its differences, its figure."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.when_two_adapters_pay import MAP, cells, differences, draw, merged
from lsat_ray.evaluation.metrics import auc
from lsat_ray.evaluation.significance import Key, Scored

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_the_figure_shows_the_differences_of_the_map() -> None:
    rows = [
        (name, drift, half_life, 400, 0.01 * drift + 0.001 * at, -0.1, 0.2, 5, 3)
        for at, name in enumerate(("lsat-en(3)", "hedge", "fine-tuning"))
        for drift in (0.0, 2.4)
        for half_life in (400.0, 3200.0)
    ]
    figure = draw(pd.DataFrame(rows, columns=MAP)).figure
    assert len(figure.axes) == 2
    assert [len(axes.containers) for axes in figure.axes] == [2, 2]
    assert figure.axes[0].containers[0].lines[0].get_ydata().tolist() == pytest.approx([0.0, 0.024])


def test_each_panel_shows_and_names_the_rows_that_it_has() -> None:
    """LSAT's rows are named by m, which is another where a period has more rows."""
    rows = [
        (name, drift, 400.0, number, at + drift, at - 0.1, at + 3.0, 5, 3)
        for name, number, at in (("lsat-en(3)", 400, 0.1), ("lsat-en(1)", 800, 0.7))
        for drift in (0.0, 2.4)
    ]
    figure = draw(pd.DataFrame(rows, columns=MAP)).figure
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [["lsat-en(3)"], ["lsat-en(1)"]]


def test_a_cell_of_the_map_compares_over_seeds_and_backbones(rng: np.random.Generator) -> None:
    label, user, row = rng.integers(0, 2, 300), rng.integers(0, 30, 300), np.arange(300)

    def scored(sharpness: float) -> Scored:
        return Scored(row, user, label, sharpness * label + rng.standard_normal(300))

    keys = [Key(seed, period) for seed in range(2) for period in (3, 4)]
    found = {
        b: {"full-retraining": {k: scored(0.5) for k in keys}, "hedge": {k: scored(2.0) for k in keys}, "oracle": {}}
        for b in ("nano0", "nano1", "nano2")
    }
    (mine,) = differences(found).to_dict("records")
    means = {
        name: np.mean([auc(label, scores[name][k].score) for scores in found.values() for k in keys])
        for name in ("hedge", "full-retraining")
    }
    assert mine["delta"] == pytest.approx(means["hedge"] - means["full-retraining"])
    assert 0 < mine["low"] < mine["delta"] < mine["high"]
    assert (mine["strategy"], mine["seeds"], mine["backbones"]) == ("hedge", 2, 3)


def test_cells_of_earlier_commands_stay_in_the_map(tmp_path: Path) -> None:
    def cell(drift: float, rows: int, delta: float) -> pd.DataFrame:
        lines = [(name, drift, 400.0, rows, delta, -0.1, 0.2, 5, 3) for name in ("hedge", "fine-tuning")]
        return pd.DataFrame(lines, columns=MAP)

    path = tmp_path / "map.csv"
    for drift, rows, delta in ((0.0, 400, 0.01), (2.4, 400, 0.02), (2.4, 200, 0.03), (2.4, 400, 0.04)):
        merged(path, cell(drift, rows, delta)).to_csv(path, index=False)
    found = pd.read_csv(path)
    assert list(found.columns) == MAP
    assert found["strategy"].tolist() == ["hedge", "fine-tuning"] * 3
    assert found[["rows", "drift", "delta"]].drop_duplicates().to_numpy().tolist() == [
        [200, 2.4, 0.03],
        [400, 0.0, 0.01],
        [400, 2.4, 0.04],
    ]


def test_the_map_holds_the_stream_fixed_and_varies_the_cut() -> None:
    config = RESULTS.parents[1] / "jobs" / "configs" / "map_synthetic.yaml"
    options = argparse.Namespace(
        config=config, drift=[1.2], half_life=[1600], rows=[200, 800], seeds=5, backbones=3, set=[]
    )
    found = list(cells(options))
    assert [knobs["rows"] for knobs, _ in found] == [200, 800]
    studies = [s for _, by_backbone in found for s in by_backbone.values()]
    assert len({s.name for s in studies}) == len(studies) == 6
    assert len({s.data for s in studies}) == 1
    assert [s.periods.number for s in studies] == [12] * 3 + [3] * 3
    assert {s.backbone.nano.seed for s in studies} == {0, 1, 2}
    assert all(s.seeds == (0, 1, 2, 3, 4) for s in studies)
