"""The table, its words and its two faces."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from lsat_ray.errors import LsatError
from lsat_ray.report import tables
from lsat_ray.report.reader import RunReader


@pytest.fixture(scope="module")
def table(whole_run):
    run = RunReader(whole_run)
    return tables.mean_auc(run.metrics, run.scores)


def test_the_mean_is_over_periods_of_the_mean_over_seeds(whole_run, table):
    metrics = RunReader(whole_run).metrics
    mine = metrics[metrics["strategy"] == "lsat-en(10)"]
    row = table.set_index("strategy").loc["lsat-en(10)"]
    assert row["mean_auc"] == pytest.approx(mine["auc"].mean())
    assert row["sd_seeds"] == pytest.approx(mine.groupby("seed")["auc"].mean().std())
    assert (row["periods"], row["seeds"]) == (5, 2)


def test_an_unbalanced_run_weighs_every_period_alike():
    metrics = pd.DataFrame(
        {"strategy": "a", "period": [11, 11, 12], "seed": [0, 1, 0], "auc": [0.6, 0.8, 0.9]},
    )
    assert tables.mean_auc(metrics)["mean_auc"].item() == pytest.approx(0.8)


def test_every_strategy_has_a_row_and_a_verdict(table, strategies):
    words = table.set_index("strategy")["verdict"]
    assert set(words.index) == set(strategies)
    assert words["lsat-en(10)"].startswith("better by")
    assert words["short-term"].startswith("no difference")
    assert words["frozen"].startswith("worse by")
    assert words["full-retraining"] == "reference"
    assert words["oracle"] == "upper bound"
    assert np.isnan(table.set_index("strategy").loc["oracle", "delta"])  # a bound, not one more test in the family
    assert table["mean_auc"].is_monotonic_decreasing


def test_headline_names_the_best_row_and_never_an_oracle(table):
    line = tables.headline(table)
    assert line.startswith("lsat-en(10) has the highest mean AUC, .")
    assert "5 tested periods, 2 seeds" in line
    assert "Against full-retraining: better by" in line
    partial = table.replace({"strategy": {"lsat-en(10)": "oracle-mixture"}})
    assert tables.headline(partial).startswith("lsat-en(full) has")


def test_headline_names_a_naive_row_that_is_the_best():
    """`item-rate` at .83 stood in the table while the headline gave the crown to an adapter at .78."""
    metrics = pd.DataFrame(
        {
            "strategy": ["item-rate", "full-retraining", "lsat-en(10)"],
            "period": 11,
            "seed": 0,
            "auc": [0.83, 0.77, 0.78],
        }
    )
    line = tables.headline(tables.mean_auc(metrics))
    assert line.startswith("item-rate has the highest mean AUC, .8300 (1 tested period, 1 seed).")
    assert "It needs no model; the best model is lsat-en(10), .7800." in line


def test_headline_without_difference_and_with_the_reference_in_front(table):
    rest = table[~table["strategy"].str.startswith("lsat-en")]
    assert ": no difference (" in tables.headline(rest) or ": not significant after Holm (" in tables.headline(rest)
    rest = rest[~rest["strategy"].str.startswith("lsat-ta")]
    assert "No significant difference was found between it and short-term, long-term" in tables.headline(rest)


def test_no_difference_never_stands_beside_an_interval_without_zero(whole_run):
    """After Holm over 40 rows a difference whose own interval excludes zero is not significant; it is not none."""
    run = RunReader(whole_run)
    crowd = {f"copy-{i}": run.scores["frozen"] for i in range(40)}
    metrics = pd.concat(
        [run.metrics, *(run.metrics[run.metrics["strategy"] == "frozen"].assign(strategy=name) for name in crowd)]
    )
    table = tables.mean_auc(metrics, run.scores | crowd, resamples=499)
    compared = table[table["delta"].notna()]
    apart = compared[(compared["ci_low"] > 0) | (compared["ci_high"] < 0)]
    assert not apart["verdict"].str.startswith("no difference").any()
    assert apart["verdict"].str.startswith("not significant after Holm").any()
    with_zero = compared.drop(apart.index)
    assert with_zero["verdict"].str.startswith("no difference").all()


def test_the_noise_floor_stands_under_the_table_and_in_its_words(whole_run):
    run = RunReader(whole_run)
    table = tables.mean_auc(run.metrics, run.scores, noise=0.03)
    small = table[table["delta"].abs() < 0.03]
    assert len(small) > 1
    assert small["verdict"].str.startswith("below the noise floor").all()
    line = "Differences below .0300 are not differences (noise floor: spread over runs that differ by rounding alone)."
    assert tables.plain_table(table, noise=0.03).splitlines()[-1] == line
    terminal = io.StringIO()
    tables.show(table, Console(file=terminal, force_terminal=True, width=140), noise=0.03)
    assert "Differences below .0300 are not differences" in terminal.getvalue()
    assert "noise" not in tables.plain_table(tables.mean_auc(run.metrics, run.scores))


def test_all_rows_of_the_table_are_on_the_same_samples(whole_run):
    metrics = RunReader(whole_run).metrics
    short = metrics[(metrics["strategy"] != "frozen") | (metrics["period"] > 12)]
    table = tables.mean_auc(short)
    assert (table["periods"] == 3).all()
    full = metrics[(metrics["strategy"] == "full-retraining") & (metrics["period"] > 12)]["auc"].mean()
    assert table.set_index("strategy").loc["full-retraining", "mean_auc"] == pytest.approx(full)
    odd = metrics.assign(rows=metrics["rows"].where(metrics["strategy"] != "frozen", 399))
    with pytest.raises(LsatError, match="differ in `rows` of a period"):
        tables.mean_auc(odd)
    apart = metrics.assign(period=metrics["period"].where(metrics["strategy"] != "frozen", 99))
    with pytest.raises(LsatError, match="no period was tested for every row"):
        tables.mean_auc(apart)


def test_without_scores_there_are_means_and_no_verdicts(whole_run):
    bare = tables.mean_auc(RunReader(whole_run).metrics)
    assert bare["delta"].isna().all()
    assert set(bare["verdict"]) == {"", "reference", "upper bound"}
    assert "was not compared" in tables.headline(bare)


def test_a_strategy_that_was_tested_elsewhere_is_not_compared(whole_run):
    run = RunReader(whole_run)
    late = run.metrics.assign(strategy="late")
    scores = {"full-retraining": run.scores["full-retraining"]}
    scores["late"] = {k._replace(period=99): s for k, s in run.scores["frozen"].items()}
    row = tables.mean_auc(pd.concat([run.metrics, late]), scores).set_index("strategy").loc["late"]
    assert row["verdict"] == ""


def test_nan_is_a_dash_and_no_crash():
    metrics = pd.DataFrame({"strategy": ["a", "b"], "period": 11, "seed": 0, "auc": [np.nan, 0.7]})
    assert tables.plain_table(tables.mean_auc(metrics)).splitlines()[2].split()[:2] == ["a", "-"]


def test_plain_text_where_there_is_no_terminal_and_a_layout_where_there_is(table, strategies):
    pipe, terminal = io.StringIO(), io.StringIO()
    tables.show(table, Console(file=pipe))
    lines = pipe.getvalue().splitlines()
    assert len(lines) == len(strategies) + 1
    assert "\x1b" not in pipe.getvalue()
    assert len({line.index(".") for line in lines[1:5]}) == 1  # columns are aligned
    tables.show(table, Console(file=terminal, force_terminal=True, width=140))
    for strategy in strategies:
        assert strategy in pipe.getvalue()
        assert strategy in terminal.getvalue()


def test_a_file_that_breaks_the_contract_is_named(tmp_path):
    pd.DataFrame({"strategy": ["a"]}).to_parquet(tmp_path / "metrics.parquet")
    with pytest.raises(LsatError, match=r"metrics\.parquet: no column period, seed, auc"):
        _ = RunReader(tmp_path).metrics


def test_the_ledger_forgives_a_last_line_cut_off_and_no_other(tmp_path):
    file = tmp_path / "ledger.jsonl"
    file.write_text('{"a": 1}\n{"b"')
    assert RunReader(tmp_path).ledger == [{"a": 1}]
    file.write_text('{"b"\n{"a": 1}\n')
    with pytest.raises(LsatError, match="line 1: not JSON"):
        _ = RunReader(tmp_path).ledger
