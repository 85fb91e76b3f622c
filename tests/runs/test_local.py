"""The whole pipeline over the local backend: every row, both orders, resumes, edits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lsat_ray.config import Experiment, LoraSettings, Recipe
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.runs import steps
from lsat_ray.runs.backend import Counts
from lsat_ray.runs.check import check
from lsat_ray.runs.finished import finished
from lsat_ray.runs.ledger import Ledger
from lsat_ray.runs.local import LocalBackend
from lsat_ray.runs.replay import replay
from lsat_ray.runs.study import study
from lsat_ray.runs.tasks import Fit, Task
from lsat_ray.scoring.model import Model
from lsat_ray.strategies import STRATEGIES
from lsat_ray.strategies.base import Plan, alone, full_retraining
from lsat_ray.strategies.full_retraining import FullRetraining


def quick(experiment: Experiment, **changes: Any) -> Experiment:
    """Return the tiny experiment with small adapters, an epoch or two and a grid of three."""
    return experiment.model_copy(
        update={
            "lora": LoraSettings(rank=2, alpha=4),
            "recipe": Recipe(lr=5e-3, batch_size=32, epochs=1),
            "search": experiment.search.model_copy(update={"grid": (0.0, 0.5, 1.0)}),
            "baselines": experiment.baselines.model_copy(update={"epochs": 2}),
        }
        | changes
    )


def go(
    config: Experiment, folder: Path, order: Callable[..., Path] = replay, backend: LocalBackend | None = None
) -> Path:
    """Run a config on the local backend."""
    return order(config, folder, backend or LocalBackend(config), lambda _: None)


def bytes_of(run: Path) -> dict[str, str]:
    """Return the digest of every file that must not depend on how the run came about."""
    files = [run / "metrics.parquet", run / "ledger.jsonl", *sorted((run / "scores").rglob("*.parquet"))]
    files += sorted((run / "adapters").rglob("*.safetensors")) + sorted((run / "adapters").rglob("manifest.json"))
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def whole(tiny_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replay every strategy there is."""
    return go(quick(tiny_experiment, strategies=tuple(STRATEGIES)), tmp_path_factory.mktemp("runs"))


def test_every_strategy_is_measured_on_every_tested_period(whole: Path, tiny_experiment: Experiment) -> None:
    metrics = pd.read_parquet(whole / "metrics.parquet")
    assert metrics["auc"].between(0, 1).all()
    assert all(sorted(part["period"]) == [3, 4] for _, part in metrics.groupby("strategy"))
    assert metrics["strategy"].nunique() == len(STRATEGIES) + 8, "each strategy, four naive rows and four oracles"


def test_what_a_period_trains_is_announced_before_its_samples_are_scored(
    tiny_experiment: Experiment, tmp_path: Path
) -> None:
    """So that sessions train while the endpoint answers; and nothing else is announced than is asked for."""
    heard: list[tuple[str, set[str]]] = []

    class Listening(LocalBackend):
        def announce(self, tasks: Sequence[Task], present: set[str]) -> None:
            heard.append(("announce", {t.key for t in tasks}))

        def score_served(self, period: int, strategies: Sequence[str]) -> dict[str, tuple[Model, np.ndarray]]:
            heard.append(("score", set()))
            return super().score_served(period, strategies)

        def do(self, tasks: Sequence[Task], present: set[str], counts: Counts | None = None) -> dict[str, Any]:
            if fits := {t.key for t in tasks if isinstance(t, Fit)}:
                heard.append(("do", fits))
            return super().do(tasks, present, counts)

    config = quick(tiny_experiment, strategies=("full-retraining", "short-term"))
    go(config, tmp_path, backend=Listening(config))
    kinds = [kind for kind, _ in heard]
    assert kinds == ["announce", "do", "announce", "score", "do", "score"]  # models of 2, models of 3, the end
    assert [keys for kind, keys in heard if kind == "announce"] == [keys for kind, keys in heard if kind == "do"]


def test_a_run_has_its_page_only_when_the_backend_has_ended_its_work(
    tiny_experiment: Experiment, tmp_path: Path
) -> None:
    config = quick(tiny_experiment, strategies=("full-retraining",))
    seen: list[tuple[bool, bool]] = []

    class Asked(LocalBackend):
        def finish(self) -> None:
            run = tmp_path / config.name
            seen.append(((run / "mean_auc.csv").is_file(), (run / "report.html").is_file()))

    run = go(config, tmp_path, backend=Asked(config))
    assert seen == [(True, False)], "the tables are written while the backend ends, the page after that"
    assert (run / "report.html").is_file()


@pytest.mark.parametrize(("weight", "single"), [(0.0, "short-term"), (1.0, "long-term")])
def test_the_ends_of_every_exact_merge_are_the_single_rows(
    tiny_experiment: Experiment, tmp_path: Path, weight: float, single: str
) -> None:
    merged = ("lsat-en", "lsat-ta", "lsat-delta")
    config = quick(tiny_experiment, strategies=("short-term", "long-term", *merged))
    config = config.model_copy(update={"search": config.search.model_copy(update={"grid": (weight,)})})
    scores = go(config, tmp_path) / "scores"
    alone_ = {f.name: pd.read_parquet(f)["score"] for f in (scores / single / "seed0").glob("*.parquet")}
    assert alone_
    for name in merged:
        for file, score in alone_.items():
            ours = pd.read_parquet(scores / f"{name}(2)" / "seed0" / file)["score"]
            np.testing.assert_allclose(ours, score, atol=1e-6, err_msg=name)


def test_the_weights_of_a_search_are_the_mean_of_its_grid_by_share(tiny_experiment: Experiment, whole: Path) -> None:
    periods = check(tiny_experiment).periods
    tried = pd.read_parquet(whole / "search" / "coefficients.parquet")
    assert tried.groupby(["strategy", "period"])["share"].sum().to_numpy() == pytest.approx(1)
    by_search = dict(list(tried[tried["strategy"].str.startswith("lsat-en(")].groupby(["strategy", "period"])))
    assert any(0 < one["share"].max() < 1 for one in by_search.values()), "no search blends: the test shows nothing"
    ledger = Ledger(whole / "ledger.jsonl")
    for (name, t), one in by_search.items():
        record = ledger.get(0, name, t, "search")
        assert record is not None
        likelihood = np.exp(-(one["log_loss"] - one["log_loss"].min()) * len(periods.rows(t, "validation")))
        np.testing.assert_allclose(one["share"], likelihood / likelihood.sum())
        assert record["weights"][0] == pytest.approx((one["share"] * one["coefficient"]).sum())


class Death(BaseException):
    """What a kill looks like from inside."""


@pytest.mark.parametrize(("order", "every"), [(replay, 7), (study, 7)], ids=["replay", "study"])
def test_cut_off_anywhere_it_ends_with_the_same_bytes(
    tiny_experiment: Experiment, tmp_path: Path, order: Any, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die at every so many records of the ledger, each time going on with the same call."""
    names = ("full-retraining", "fine-tuning", "lsat-en", "lsat-ta", "mf/fine-tuning", "reclora")
    config = quick(tiny_experiment, strategies=names)
    expected = go(config, tmp_path / "whole", order)
    append, written = Ledger.append, 0

    def mortal(self: Ledger, *args: Any, **facts: Any) -> None:
        nonlocal written
        before = len(self)
        append(self, *args, **facts)
        written += len(self) - before
        if len(self) > before and written % every == 0:
            raise Death

    deaths = 0
    monkeypatch.setattr(Ledger, "append", mortal)
    while True:
        try:
            found = go(config, tmp_path / "cut", order)
            break
        except Death:
            deaths += 1
    assert deaths > 2
    ours, theirs = bytes_of(found), bytes_of(expected)
    assert ours.keys() == theirs.keys()
    base = [k for k in ours if k.endswith("manifest.json")]  # names the backbone's folder, which differs here
    assert {k: v for k, v in ours.items() if k not in base} == {k: v for k, v in theirs.items() if k not in base}


def test_an_adapter_damaged_at_the_end_is_served_again_once_it_is_mended(
    tiny_experiment: Experiment, tmp_path: Path
) -> None:
    """Every score was recorded already, so nothing was published again: the endpoint kept what was left."""
    config = quick(tiny_experiment, strategies=("full-retraining",))
    run = go(config, tmp_path)
    before = (run / "current.json").read_bytes()
    (digest,) = json.loads(before)["models"][0]["adapters"]
    (run / "adapters" / digest / "adapter_model.safetensors").write_bytes(b"damaged")
    go(config, tmp_path)
    assert (run / "current.json").read_bytes() == before


def test_replay_and_study_measure_the_same(tiny_experiment: Experiment, tmp_path: Path) -> None:
    config = quick(tiny_experiment)
    one = pd.read_parquet(go(config, tmp_path / "a") / "metrics.parquet")
    two = pd.read_parquet(go(config, tmp_path / "b", study) / "metrics.parquet")
    pd.testing.assert_frame_equal(one, two)


def test_a_validation_split_of_one_class_is_chosen_alike(tiny_experiment: Experiment, tmp_path: Path) -> None:
    """Replay took the lowest log-loss there, the study the first candidate."""
    config = quick(
        tiny_experiment,
        strategies=("lsat-en",),
        data=tiny_experiment.data.model_copy(update={"positive_above": 3.0}),
        periods=tiny_experiment.periods.model_copy(update={"validation": 0.04}),  # two samples: often one class
    )
    records = []
    for order, name in ((replay, "a"), (study, "b")):
        ledger = Ledger(go(config, tmp_path / name, order) / "ledger.jsonl")
        records.append([ledger.get(0, "lsat-en(2)", t, "search") for t in (2, 3)])
    assert records[0] == records[1]
    table = pd.read_parquet(tmp_path / "a" / config.name / "search" / "coefficients.parquet")
    assert table["auc"].isna().any(), "no V_t of one class: the test shows nothing"


def test_an_edited_rule_shows_its_new_scores(
    tiny_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that was changed under its old name trained its new adapters and showed the old scores."""
    config = quick(tiny_experiment, strategies=("full-retraining", "short-term"))
    before = pd.read_parquet(go(config, tmp_path) / "metrics.parquet")

    class Edited(FullRetraining):
        def plan(self, t: int) -> Plan:
            spec = full_retraining(self.setting, t)
            return alone(replace(spec, train=(Slice(t, "train"), *spec.train[:1])))

    monkeypatch.setitem(STRATEGIES, "full-retraining", Edited)
    after = pd.read_parquet(go(config, tmp_path) / "metrics.parquet")
    edited = before["strategy"] == "full-retraining"
    assert (before["auc"] != after["auc"])[edited].any()
    pd.testing.assert_frame_equal(before[~edited], after[~edited])


def test_what_the_endpoint_answers_is_what_a_worker_scores(
    tiny_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every layout: alpha was chosen under one encoding and tested under another."""
    for layout in ("exact", "shared-history", "stream"):
        prompt = tiny_experiment.prompt.model_copy(update={"layout": layout, "targets": 4})
        config = quick(tiny_experiment, strategies=("full-retraining", "lsat-en"), prompt=prompt)
        served = go(config, tmp_path / layout)
        worked = go(config, tmp_path / f"{layout}-study", study)
        for file in sorted((served / "scores").rglob("*.parquet")):
            ours, theirs = pd.read_parquet(file), pd.read_parquet(worked / file.relative_to(served))
            np.testing.assert_allclose(ours["score"], theirs["score"], atol=1e-6, err_msg=f"{layout} {file.stem}")


def test_a_task_that_nothing_can_start_is_named(tiny_experiment: Experiment, tmp_path: Path) -> None:
    from lsat_ray.errors import LsatError
    from lsat_ray.runs.context import opened
    from lsat_ray.runs.tasks import Score
    from lsat_ray.scoring.model import Model

    config = quick(tiny_experiment)
    with opened(config, tmp_path, LocalBackend(config), lambda _: None, serve=False) as run:
        run.backend.arrive(1)
        with pytest.raises(LsatError, match="which nothing trains"):
            steps.do(run, 1, [Score(Model("pass", 0, "single", ("f" * 64,), (1.0,)), Slice(1, "all"))])


def test_a_run_whose_search_was_not_kept_is_not_finished(tiny_experiment: Experiment, tmp_path: Path) -> None:
    """A report says that a run has ended; it comes after the searches that are kept beside."""

    class Forgetful(LocalBackend):
        def finish(self) -> None:
            raise LsatError("search: it was not kept")

    config = quick(tiny_experiment, strategies=("short-term", "long-term", "lsat-en"))
    with pytest.raises(LsatError, match="not kept"):
        go(config, tmp_path, backend=Forgetful(config))
    assert finished(check(config), tmp_path, "replay") is None
    assert go(config, tmp_path) == finished(check(config), tmp_path, "replay")


def test_a_finished_run_starts_nothing(
    tiny_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command took 30 to 40 s: it started a cluster, sessions and an endpoint to find nothing to do."""
    from lsat_ray.cli import front

    engine = tiny_experiment.engine.model_copy(update={"backend": "local"})
    config = quick(tiny_experiment, strategies=("short-term", "lsat-en"), engine=engine)
    for order in (front.replay, front.study):
        run, said = order(config, tmp_path / order.__name__, say=lambda _: None), []
        with monkeypatch.context() as patch:
            patch.setattr(front, "make_backend", lambda _: pytest.fail("a backend was made"))
            assert order(config, tmp_path / order.__name__, say=said.append) == run
        assert said[-1] == "nothing left to do"
