"""Table 2 and Figures 2 to 5 from frames."""

import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from lsat_ray import report
from lsat_ray.errors import LsatError
from lsat_ray.report import account, study
from lsat_ray.report import cross as crossed
from lsat_ray.report.reader import RunReader


@pytest.fixture(scope="module")
def table(whole_run):
    run = RunReader(whole_run)
    trainings = pd.DataFrame(
        {"strategy": ["full-retraining", "lsat-en(10)"], "trainings": [10, 11], "training_seconds": [90.0, 20.0]}
    )
    facts = {m["digest"]: m["facts"] for m in run.manifests}
    return study.table2(
        run.metrics,
        run.scores,
        trainings,
        fits=account.fits(run.ledger, facts, sorted(run.scores)),
        validation_users=7.5,
    )


@pytest.fixture(scope="module")
def cross():
    """Two strategies; models of periods 1 to 3 tested on periods 2 to 4; `warm` knows items below 10 only."""
    rng, parts = np.random.default_rng(0), []
    for strategy in ("all", "warm"):
        for trained in (1, 2, 3):
            for tested in range(2, 5):
                item = np.arange(200) % 20
                row = np.arange(200) + 200 * tested
                signal = rng.normal(size=200)
                score = np.where(item < 10, signal, 0.0) if strategy == "warm" else signal
                label = (signal + 0.3 * rng.normal(size=200) > 0).astype(int)
                frame = {"strategy": strategy, "seed": 0, "trained": trained, "tested": tested}
                parts.append(pd.DataFrame(frame | {"row": row, "item": item, "label": label, "score": score}))
    return pd.concat(parts, ignore_index=True)


def test_table2_has_the_columns_of_the_issue_and_the_order_of_the_paper(table):
    assert list(table.columns) == [
        "strategy", "mean_auc", "ci_low", "ci_high", "delta", "p_adjusted", "verdict", "trainings", "training_seconds",
        "gauc", "log_loss", "ece", "steps", "stopped_by_patience", "validation_users",
    ]  # fmt: skip
    paper = list(study.PAPER["ml-1m"])
    assert table["strategy"].tolist()[: len(paper)] == paper
    row = table.set_index("strategy").loc["lsat-en(10)"]
    assert (row["trainings"], row["training_seconds"]) == (11, 20)
    assert row["ci_low"] < row["delta"] < row["ci_high"]
    assert 0.5 < row["gauc"] < 1
    assert 0 < row["ece"] < row["log_loss"] < 0.7
    assert (row["steps"], row["stopped_by_patience"]) == (20, 1)  # a long-term adapter of 60 steps, five of 12
    full = table.set_index("strategy").loc["full-retraining"]
    assert (full["steps"], full["stopped_by_patience"]) == (60, 0.6)
    assert np.isnan(table.set_index("strategy").loc["frozen", ["steps", "stopped_by_patience"]].astype(float)).all()


def test_table2_without_facts_of_the_adapters(whole_run):
    run = RunReader(whole_run)
    table = study.table2(run.metrics, {}, pd.DataFrame(columns=["strategy", "trainings", "training_seconds"]))
    assert list(table.columns) == study.TABLE2
    assert table[["steps", "stopped_by_patience"]].isna().all(axis=None)


def test_the_paper_beside_ours(table):
    both = study.beside_paper(table, "amazon-book").set_index("strategy")
    assert both.loc["lsat-en(10)", "paper_auc"] == 0.7830
    assert both.loc["lsat-en(10)", "paper_delta"] == pytest.approx(0.0050)
    assert np.isnan(both.loc["frozen", "paper_auc"])
    with pytest.raises(LsatError, match="no numbers for 'ml-latest-small'"):
        study.beside_paper(table, "ml-latest-small")


@pytest.mark.parametrize(
    ("log", "order"),
    [
        ("ml-1m", "lsat-en(10) lsat-en(full) lsat-ta(10) full-retraining short-term long-term fine-tuning"),
        ("amazon-book", "lsat-en(10) lsat-en(full) lsat-ta(10) short-term long-term full-retraining fine-tuning"),
    ],
)
def test_the_papers_numbers_have_the_papers_order(log, order):
    assert sorted(study.PAPER[log], key=study.PAPER[log].get, reverse=True) == order.split()


def test_fig2_is_every_periods_model_on_the_last_period(cross):
    curve = crossed.curve_on(cross, tested=4)
    assert curve.groupby("strategy")["trained"].apply(list).to_dict() == {"all": [1, 2, 3], "warm": [1, 2, 3]}
    mine = cross.query("strategy == 'all' and trained == 2 and tested == 4")
    got = curve.query("strategy == 'all' and trained == 2")["auc"].item()
    assert got == pytest.approx(roc_auc_score(mine["label"], mine["score"]))


def test_a_model_is_not_tested_on_what_it_learnt_from(cross):
    assert crossed.curve_on(cross, tested=2)["trained"].tolist() == [1, 1]


def test_fig4_keeps_the_rows_of_warm_items(cross):
    curve = crossed.curve_on(cross, tested=4, items=np.arange(10)).set_index(["strategy", "trained"])
    assert (curve["rows"] == 100).all()
    assert curve.loc[("warm", 3), "auc"] > 0.9


def test_fig3_splits_warm_from_cold(cross):
    split = crossed.warm_and_cold(cross, trained=2, warm=np.arange(10)).set_index(["strategy", "split"])
    assert (split["rows"] == 200).all()  # half of periods 3 and 4
    assert split.loc[("warm", "cold"), "auc"] == 0.5
    assert split.loc[("all", "cold"), "auc"] > 0.9


def test_frames_without_a_column_are_refused(cross):
    with pytest.raises(LsatError, match="no column item, score"):
        crossed.curve_on(cross.drop(columns=["item", "score"]), 4)


def test_the_report_shows_the_study(whole_run, table, cross, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    extra = pd.DataFrame({"rank": [1, 2], "auc": [0.61, 0.62]})
    curve = crossed.curve_on(cross, 4)
    figures = {"fig2": curve, "fig3": crossed.warm_and_cold(cross, 2, np.arange(10)), "fig4": curve}
    written = study.write(run, table2=table, capacity=extra, **figures)
    assert written[0] == run / "table2.csv"
    text = report.write(run).read_text()
    for word in ("Table 2", "(Fig. 2)", "(Fig. 3)", "(Fig. 4)", "training_seconds", "capacity", ".6200"):
        assert word in text
    for name in figures:
        assert (run / "figures" / f"{name}.svg").is_file()
    assert pd.read_csv(run / "figures" / "fig3.csv")["rows"].tolist() == [200] * 4


def test_the_noise_floor_stands_under_every_table_of_the_study(whole_run, table, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    study.write(run, table2=table, paired=table[["strategy", "delta"]], slices=table[["strategy", "mean_auc"]])
    parts = {part.title: part.caption for part in study.sections(RunReader(run), noise=0.0002) if part.drawn is None}
    assert set(parts) == {"Table 2", "paired", "slices"}
    for title, caption in parts.items():
        assert "Differences below .0002 are not differences" in caption, title


def test_every_row_of_a_figure_is_on_the_samples_that_all_have(cross):
    """A row whose scores lack some samples must not be compared with rows that were tested on them."""
    lacking = cross[~((cross["strategy"] == "warm") & (cross["row"] % 4 == 0))]
    split = crossed.warm_and_cold(lacking, trained=2, warm=np.arange(10))
    assert split.groupby("split")["rows"].agg(["min", "max"]).to_numpy().tolist() == [[160, 160], [140, 140]]
    assert (crossed.curve_on(lacking, tested=4)["rows"] == 150).all()
    mine = lacking.query("strategy == 'all' and trained == 1 and tested == 4 and row % 4 != 0")
    got = crossed.curve_on(lacking, tested=4).query("strategy == 'all' and trained == 1")["auc"].item()
    assert got == pytest.approx(roc_auc_score(mine["label"], mine["score"]))
    with pytest.raises(LsatError, match="twice"):
        crossed.curve_on(pd.concat([cross, cross]), tested=4)
    disjoint = cross[(cross["strategy"] == "warm") == (cross["row"] % 2 == 0)]
    with pytest.raises(LsatError, match="no sample was scored by every row"):
        crossed.curve_on(disjoint, tested=4)


def test_slices_of_users_have_a_table_each(whole_run):
    scores = {s: r for s, r in RunReader(whole_run).scores.items() if s in ("full-retraining", "frozen", "lsat-en(10)")}
    users = {k.period: v.user for k, v in scores["frozen"].items()}
    masks = {t: {"old": u < 40, "new": u >= 40, "none": u < 0} for t, u in users.items()}
    table = study.by_slice(scores, masks, resamples=999)
    assert table["slice"].drop_duplicates().tolist() == ["old", "new"]
    whole = table.drop_duplicates("slice").set_index("slice")
    assert whole["rows"].sum() == sum(len(u) for u in users.values())
    assert whole["users"].to_dict() == {"old": 40, "new": 20}
    mine = table.query("slice == 'old'").set_index("strategy")
    parts = [roc_auc_score(v.label[v.user < 40], v.score[v.user < 40]) for v in scores["frozen"].values()]
    assert mine.loc["frozen", "mean_auc"] == pytest.approx(np.mean(parts))
    assert mine.loc["frozen", "verdict"].startswith("worse by")
    with pytest.raises(LsatError, match="no mask for the 400 samples of period 11"):
        study.by_slice(scores, {t: m for t, m in masks.items() if t != 11})
