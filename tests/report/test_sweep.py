"""Studies side by side, from a fabricated run folder."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lsat_ray.errors import LsatError
from lsat_ray.report import study, sweep
from lsat_ray.report.reader import RunReader


@pytest.fixture(scope="module")
def rows(whole_run):
    run = RunReader(whole_run)
    return sweep.table({0.5: run, 2.0: run}, ["full-retraining", "fine-tuning"])


def test_every_value_has_a_block_against_every_reference(rows):
    assert list(rows.columns[: len(sweep.SWEEP)]) == sweep.SWEEP
    assert set(zip(rows["value"], rows["against"], strict=True)) == {
        (v, r) for v in (0.5, 2.0) for r in ("full-retraining", "fine-tuning")
    }
    one = rows[(rows["value"] == 0.5) & (rows["against"] == "fine-tuning")].set_index("strategy")
    full = rows[(rows["value"] == 0.5) & (rows["against"] == "full-retraining")].set_index("strategy")
    assert one.loc["full-retraining", "delta"] == pytest.approx(-full.loc["fine-tuning", "delta"])
    assert one.loc["lsat-en(10)", "delta"] > 0
    assert one.loc["fine-tuning", "verdict"] == "reference"


def test_a_row_of_another_value_can_be_the_reference(whole_run):
    run = RunReader(whole_run)
    changed = SimpleNamespace(
        metrics=run.metrics,
        scores={**run.scores, "full-retraining": run.scores["lsat-en(10)"]},
        table=run.table,
        path=run.path,
    )
    table = sweep.table({2: run, 4: changed}, ["full-retraining@2"])
    assert set(table["value"]) == {2}  # nothing is twice 4
    found = table.set_index("strategy")
    assert found.loc["full-retraining@2", "verdict"] == "reference"
    assert found.loc["lsat-en(10)", "delta"] == 0.0  # the very scores that the other study's row was given
    assert found.loc["full-retraining", "delta"] != 0.0


@pytest.mark.parametrize(
    ("values", "reference"), [(["q_proj", "v_proj"], "full@2"), ([1, 2], "full@two"), ([1, 3], "full@2")]
)
def test_a_multiple_that_cannot_be_is_refused_before_anything_runs(values, reference):
    with pytest.raises(LsatError, match=f"--against {reference}: "):
        sweep.check(values, [reference])


def test_a_row_that_is_not_there_is_named(whole_run):
    with pytest.raises(LsatError, match="no row 'nonsense' to compare with"):
        sweep.table({1: RunReader(whole_run)}, ["nonsense"])


@pytest.mark.parametrize("names", [{0.5: 0.5, 2.0: 2.0}, {0.5: "q_proj", 2.0: "q_proj+v_proj"}])
def test_tables_and_figures_are_written(rows, tmp_path, names):
    sweep.write(rows.assign(value=rows["value"].map(names)), "data.synthetic.drift", tmp_path)
    for name in ("sweep.csv", "sweep_auc.svg", "sweep_auc.png", "sweep_differences.svg", "sweep_differences.csv"):
        assert (tmp_path / name).stat().st_size > 100, name
    assert "data.synthetic.drift" in (tmp_path / "sweep_differences.svg").read_text()


def test_numbers_stand_at_their_place_unless_they_span_a_wide_range():
    assert sweep._places(pd.Series([0.0, 1.2, 2.4]))[0][1.2] == 1.2
    assert sweep._places(pd.Series([1, 2, 32])) == ({1: 0.0, 2: 1.0, 32: 2.0}, ["1", "2", "32"])


def test_the_merge_that_scores_like_the_ensemble_comes_first(whole_run):
    run = RunReader(whole_run)
    merged = ["lsat-ta(10)", "long-term", "frozen"]
    scores = dict(run.scores)
    scores["long-term"] = scores["lsat-en(10)"]  # the ensemble itself under another name
    table = study.against_ensemble(run.metrics, scores, "lsat-en(10)", merged).set_index("strategy")
    assert table.index[0] == "long-term"
    assert table.loc["long-term", ["score_gap", "rank_correlation"]].tolist() == pytest.approx([0.0, 1.0])
    assert table.loc["long-term", "delta"] == 0.0
    assert table.loc["frozen", "score_gap"] > table.loc["lsat-ta(10)", "score_gap"]
    assert table.loc["frozen", "rank_correlation"] < table.loc["lsat-ta(10)", "rank_correlation"]
    assert np.isfinite(table["p_adjusted"]).all()


def test_the_frontier_names_what_a_score_costs(whole_run):
    run = RunReader(whole_run)
    table = study.table2(run.metrics, run.scores, run.metrics[["strategy"]].drop_duplicates().assign(
        trainings=1, training_seconds=2.0))  # fmt: skip
    cost = study.frontier(table, {"lsat-en(10)": 2, "full-retraining": 1}).set_index("strategy")
    assert cost.loc[["lsat-en(10)", "full-retraining", "item-rate"], "passes"].tolist() == [2, 1, 0]
