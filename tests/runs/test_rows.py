"""The rows that are computed from other rows, and those with weighted samples, over the local backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_local import go, quick

from lsat_ray.adapters.store import AdapterStore
from lsat_ray.baselines.features import side_table
from lsat_ray.baselines.side_head import with_side
from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError
from lsat_ray.evaluation.metrics import auc
from lsat_ray.runs.check import check
from lsat_ray.runs.finished import finished
from lsat_ray.runs.ledger import Ledger
from lsat_ray.runs.replay import replay
from lsat_ray.runs.study import study
from lsat_ray.scoring.gate import fit_sample_gate
from lsat_ray.scoring.hedge import hedge, log_loss
from lsat_ray.scoring.model import Model

NAMES = ("full-retraining", "lsat-en", "lsat-en+side", "frozen+side@period", "hedge", "mf/full-retraining")
NAMES += ("lsat-gate", "lsat-alpha")


@pytest.fixture(scope="module")
def config(tiny_experiment: Experiment) -> Experiment:
    """Return the tiny experiment with derived rows, seven periods of which five are tested."""
    data = tiny_experiment.data.model_copy(update={"keep_last": 420})
    periods = tiny_experiment.periods.model_copy(update={"number": 7, "validation": 0.2})
    floor = tiny_experiment.study.model_copy(update={"noise": 0.02, "against": "lsat-en(2)"})
    return quick(tiny_experiment, strategies=NAMES, data=data, periods=periods, study=floor)


@pytest.fixture(scope="module")
def run(config: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Study them."""
    return go(config, tmp_path_factory.mktemp("rows"), study)


def scores(run: Path, name: str, t: int) -> pd.DataFrame:
    """Return what a row scored on a tested period."""
    return pd.read_parquet(run / "scores" / name / f"seed0/period{t:02d}.parquet")


def test_the_hedge_is_the_mixture_of_all_that_is_served(run: Path) -> None:
    served = ("full-retraining", "lsat-en(2)", "frozen")
    probability = [{n: scores(run, n, t)["score"].to_numpy() for n in served} for t in range(3, 8)]
    label = [scores(run, "frozen", t)["label"].to_numpy() for t in range(3, 8)]
    expected = hedge(probability, label)
    for t, mixture in enumerate(expected.mixture, start=3):
        np.testing.assert_allclose(scores(run, "hedge", t)["score"], mixture, atol=1e-12)
    total = {n: sum(log_loss(p[n], y) for p, y in zip(probability, label, strict=True)) for n in served}
    mine = sum(log_loss(m, y) for m, y in zip(expected.mixture, label, strict=True))
    assert mine <= min(total.values()) + np.log(len(served)), "the bound of the theorem"


def test_table_2_has_the_derived_rows_and_says_what_was_trained(run: Path) -> None:
    table = pd.read_csv(run / "table2.csv").set_index("strategy")
    assert {"gauc", "log_loss", "ece", "steps", "stopped_by_patience"} <= set(table.columns)
    assert {"hedge", "lsat-en(2)+side", "frozen+side@period", "item-rate@period", "mf/full-retraining"} <= set(
        table.index
    )
    assert table.loc["lsat-en(2)+side", "steps"] == table.loc["lsat-en(2)", "steps"]
    assert np.isnan(table.loc["hedge", "steps"])
    assert table.loc[["hedge", "lsat-en(2)+side"], ["gauc", "log_loss", "ece"]].notna().all(axis=None)
    passes = pd.read_csv(run / "study" / "frontier.csv").set_index("strategy")["passes"]
    assert passes["hedge"] == 4, "full, long, short and frozen"
    assert passes["lsat-en(2)+side"] == 2
    assert passes["frozen+side@period"] == 1
    assert "Differences below .0200 are not differences" in (run / "report.html").read_text()
    users = pd.read_csv(run / "trainings.csv")["validation_users"]
    assert users.between(1, 12).all()


@pytest.mark.parametrize("t", [3, 6])
def test_a_side_head_reads_no_label_of_what_it_scores(config: Experiment, run: Path, t: int) -> None:
    """With all labels from D_t on blanked, the head gives the scores that were recorded."""
    periods = check(config).periods
    label = np.where(np.arange(len(periods.samples)) < periods.borders[t - 1], periods.samples.label, 0)
    margin = np.full(len(periods.samples), np.nan)
    opening = run / "passes" / Model("pass", 0, "frozen").digest[:32] / "period02-validation.parquet"
    margin[periods.positions(2, "validation")] = pd.read_parquet(opening)["margin"]
    for s in range(3, t + 1):
        p = scores(run, "frozen", s)["score"].to_numpy()
        margin[periods.span(s)] = np.log(p / (1 - p))
    blanked = replace(periods, samples=replace(periods.samples, label=label.astype(periods.samples.label.dtype)))
    expected = with_side(blanked, margin, t - 1, "period")
    np.testing.assert_allclose(scores(run, "frozen+side@period", t)["score"], expected, atol=1e-9)


def test_a_gate_reads_no_label_that_comes_later(config: Experiment, run: Path) -> None:
    """With the labels of the second half of D_t blanked, the gate gives the scores of the first half."""
    t, ledger = 6, Ledger(run / "ledger.jsonl")
    periods = check(config).periods
    half = (periods.borders[t - 1] + periods.borders[t]) // 2
    label = np.where(np.arange(len(periods.samples)) < half, periods.samples.label, 0)
    blanked = replace(periods, samples=replace(periods.samples, label=label.astype(periods.samples.label.dtype)))
    table, store = side_table(blanked), AdapterStore(run / "adapters")

    def margins(s: int, part: str, tested: int) -> list[np.ndarray]:
        found = []
        for digest in ledger.get(0, "lsat-en(2)", s, "search")["adapters"]:  # type: ignore[index]
            one = Model("pass", 0, "single", (digest,), (1.0,)).digest[:32]
            file = run / "passes" / one / f"period{tested:02d}-{part}.parquet"
            own = pd.read_parquet(file)["margin"].to_numpy() if file.exists() else store.validation(digest)[1]
            found.append(own)
        return found

    parts = [(s, "validation", s) for s in range(2, t)] + [(s - 1, "all", s) for s in range(3, t)]
    place = np.concatenate([periods.positions(tested, part) for _, part, tested in parts])  # type: ignore[arg-type]
    known = [np.concatenate(m) for m in zip(*(margins(*p) for p in parts), strict=True)]
    new, rows = margins(t - 1, "all", t), periods.positions(t, "all")

    def features(margin: list[np.ndarray], at: np.ndarray) -> np.ndarray:
        return np.column_stack([*margin, *np.abs(margin), table[at]])

    gate = fit_sample_gate(known, features(known, place), label[place], place)
    first = rows < half
    expected = gate.mixed(new, features(new, rows))[first]
    np.testing.assert_allclose(scores(run, "lsat-gate(2)", t)["score"][first], expected, atol=1e-9)
    facts = ledger.get(0, "lsat-gate(2)", t, "score")["gate"]  # type: ignore[index]
    assert facts["rows"] == len(place) and facts["spread"] > 0
    assert ledger.get(0, "lsat-alpha(2)", t, "score")["gate"]["spread"] < 1e-12  # type: ignore[index]


def test_every_row_is_compared_with_the_named_one(config: Experiment, run: Path) -> None:
    table, paired = (pd.read_csv(run / name) for name in ("table2.csv", "study/paired.csv"))
    assert set(paired["strategy"]) == set(table["strategy"]) - {"lsat-en(2)"}
    assert set(paired["reference"]) == {"lsat-en(2)"}
    auc_of = table.set_index("strategy")["mean_auc"]
    gap = paired.set_index("strategy")["difference"] - (auc_of - auc_of["lsat-en(2)"])
    assert gap.abs().max() < 5e-6, "both are written with six digits"
    assert (paired["p_adjusted"] >= paired["p"]).all()
    with pytest.raises(LsatError, match=r"study.against: no row is called 'nothing'"):
        check(config.model_copy(update={"study": config.study.model_copy(update={"against": "nothing"})}))


def test_replay_and_study_derive_the_same_and_resume(config: Experiment, run: Path, tmp_path: Path) -> None:
    replayed = go(config, tmp_path, replay)
    one, two = (pd.read_parquet(folder / "metrics.parquet") for folder in (replayed, run))
    pd.testing.assert_frame_equal(one, two)
    assert finished(check(config), tmp_path, "replay") == replayed
    lines = (replayed / "ledger.jsonl").read_text().splitlines(keepends=True)
    kept = [x for x in lines if '"strategy": "hedge"' not in x or '"period": 7' not in x]
    assert len(kept) == len(lines) - 1
    (replayed / "ledger.jsonl").write_text("".join(kept))
    assert finished(check(config), tmp_path, "replay") is None
    go(config, tmp_path, replay)
    before = Ledger(run / "ledger.jsonl").get(0, "hedge", 7, "score")
    assert Ledger(replayed / "ledger.jsonl").get(0, "hedge", 7, "score") == before


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("lsat-en+side",), "name it too"),
        (("hedge", "hedge+side"), "a row with models"),
        (("mf/full-retraining", "mf/full-retraining+side"), r"mf\+side/full-retraining"),
        (("nothing+side",), "name it too"),
        (("lsat-gate",), "name it too"),
        (("lsat-en", "lsat-gate", "lsat-gate+side"), "a row with models"),
    ],
)
def test_a_derived_row_without_what_it_needs_is_refused(config: Experiment, names: tuple[str, ...], says: str) -> None:
    with pytest.raises(LsatError, match=says):
        check(config.model_copy(update={"strategies": names}))


def test_weights_are_chosen_on_the_pooled_splits_of_several_periods(config: Experiment, tmp_path: Path) -> None:
    """Each V_s is scored by the adapters of its own period; replay and study pool the same."""
    names = ("full-retraining", "lsat-en-full", "recency")
    periods = config.periods.model_copy(update={"number": 5, "validation_pool": 3})
    data = config.data.model_copy(update={"keep_last": 300})
    alone = config.study.model_copy(update={"against": None, "figures": True})
    pooled = config.model_copy(update={"strategies": names, "periods": periods, "data": data, "study": alone})
    one, two = go(pooled, tmp_path / "a"), go(pooled, tmp_path / "b", study)
    pd.testing.assert_frame_equal(pd.read_parquet(one / "metrics.parquet"), pd.read_parquet(two / "metrics.parquet"))
    tried = pd.read_parquet(two / "search" / "coefficients.parquet")
    ledger, store = Ledger(two / "ledger.jsonl"), AdapterStore(two / "adapters")
    for t, pool in ((2, [2]), (3, [2, 3]), (4, [2, 3, 4])):
        label, score = [], []
        for s in pool:
            record = ledger.get(0, "full-retraining", s, "search")
            assert record is not None
            row, margin = store.validation(record["adapters"][0])
            label.append(check(pooled).periods.samples.label[row])
            score.append(margin)
        mine = tried[(tried["strategy"] == "lsat-en(full)") & (tried["period"] == t) & (tried["coefficient"] == 1.0)]
        assert mine["auc"].item() == pytest.approx(auc(np.concatenate(label), np.concatenate(score)))
    halves = tried[tried["strategy"] == "recency"]
    assert sorted(halves["coefficient"].unique()) == [1, 2, 4, 8]
    for t in (2, 3, 4):
        record = ledger.get(0, "recency", t, "search")
        assert record is not None
        best = halves[(halves["period"] == t) & (halves["share"] == 1)]["coefficient"].item()
        assert record["weights"] == [best]
        chosen = record["adapters"][[1, 2, 4, 8].index(best)]
        assert store.manifest(chosen)["spec"]["half_life"] == best * 60
    curves = pd.read_csv(two / "figures" / "coefficients.csv")
    assert set(curves["strategy"]) == {"lsat-en(full)"}, "a half-life is no weight"


def test_peso_serves_the_lambda_that_is_best_on_v_t_and_its_penalty_is_recorded(
    config: Experiment, tmp_path: Path
) -> None:
    alone = config.study.model_copy(update={"against": None, "every_period": False})
    peso = config.peso.model_copy(update={"lambdas": (1.0, 500.0), "later_lr": 1e-3})
    periods = config.periods.model_copy(update={"number": 5})
    data = config.data.model_copy(update={"keep_last": 300})
    changes = {"strategies": ("full-retraining", "peso"), "peso": peso, "periods": periods, "data": data}
    run = go(config.model_copy(update={**changes, "study": alone}), tmp_path, study)
    tried = pd.read_parquet(run / "search" / "coefficients.parquet")
    trainings = pd.read_csv(run / "trainings.csv").set_index("digest")
    for t in (2, 3, 4):
        record = Ledger(run / "ledger.jsonl").get(0, "peso", t, "search")
        assert record is not None
        log_loss = tried[tried["period"] == t].set_index("coefficient")["log_loss"]
        assert record["weights"] == [log_loss.idxmin()]
        links = trainings.loc[record["adapters"]]
        assert links["penalty"].tolist() == ["softmax-kl(1, sum)", "softmax-kl(500, sum)"]
        assert (links["penalty_ratio"] > 0).all()
    assert trainings["penalty"].notna().sum() == 6, "no other model has a penalty"
