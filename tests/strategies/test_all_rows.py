"""Every strategy carried out on a tiny stream in plain torch: train, fit weights, publish, load, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone.load import load
from lsat_ray.config import EngineConfig, Experiment, LoraSettings, Recipe
from lsat_ray.data.periods import Periods, Slice
from lsat_ray.data.reservoir import training_rows
from lsat_ray.prompts.encode import Encoder
from lsat_ray.scoring.gate import fit_gate
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.recommender import Recommender
from lsat_ray.scoring.score import score
from lsat_ray.strategies import STRATEGIES, Plan, Setting, make
from lsat_ray.strategies.graph import needed
from lsat_ray.training.coefficients import fit_coefficients
from lsat_ray.training.fit import TorchEngine, fit

LAST = 3


class Run(NamedTuple):
    periods: Periods
    setting: Setting
    model: AdaptedBackbone
    encoder: Encoder
    store: AdapterStore
    trained: list[AdapterSpec]


def train(run: Run, spec: AdapterSpec) -> None:
    """Do what a training worker does with a spec."""
    rows = training_rows(run.periods, spec.train, spec.replay, spec.seed)
    initial = run.store.load(spec.init.digest) if spec.init else None
    frozen = [run.store.load(a.digest) for a in spec.frozen.adapters] if spec.frozen else []
    validation = run.encoder(run.periods.select(spec.validation))
    engine, settings = TorchEngine(), EngineConfig(kind="torch")
    fitted = fit(spec, run.model, run.encoder(rows), validation, engine, settings, initial, frozen=frozen)
    run.store.publish(spec, fitted.adapter, {"auc": fitted.auc}, "tiny", (validation.row, fitted.margin))


def models(run: Run, name: str, t: int, plan: Plan) -> list[Model]:
    """Return the candidates among which V_t decides, or the one whose weights are fitted."""
    grid = plan.grid
    if plan.fit:
        adapters = [run.store.load(a.digest) for a in plan.fit.adapters]
        rows = run.encoder(run.periods.select(plan.fit.rows))
        if plan.merge == "gated-ensemble":
            grid = (fit_gate([score(run.model, a, rows) for a in adapters], rows.label),)
        else:
            grid = (fit_coefficients(run.model, adapters, rows, plan.fit.pull, steps=2),)
    digests = tuple(a.digest for a in plan.adapters)
    return [Model(name, t, plan.merge, digests, weights, plan.space) for weights in grid]


@pytest.fixture(scope="module")
def run(
    tiny_experiment: Experiment,
    tiny_periods: Periods,
    tiny_backbone_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    torch.set_num_threads(1)
    config = tiny_experiment.model_copy(
        update={
            "strategies": tuple(STRATEGIES),
            "lora": LoraSettings(rank=2, alpha=4),
            "recipe": Recipe(lr=5e-3, batch_size=32, epochs=1),
            "search": tiny_experiment.search.model_copy(update={"grid": (0.0, 0.5, 1.0)}),
        }
    )
    backbone = load(config.backbone, tiny_backbone_folder)
    sizes = tuple(len(tiny_periods.rows(t)) for t in range(1, tiny_periods.count + 1))
    setting = Setting(backbone.fingerprint, tiny_periods.fingerprint, config, 0, sizes)
    model = AdaptedBackbone(backbone, config.lora)
    encoder = Encoder(backbone.tokenizer, config.prompt, tiny_periods.titles)
    specs = needed(make(setting), range(1, LAST + 1))
    made = Run(tiny_periods, setting, model, encoder, AdapterStore(tmp_path_factory.mktemp("store")), specs)
    for spec in specs:  # parents come first, so one pass is enough
        train(made, spec)
    return made


def scores(run: Run, model: Model, rows: Any) -> np.ndarray:
    recommender = Recommender(run.model, run.store)
    recommender.prepare([model])
    return recommender.scores([model], rows)[0]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_row_can_be_served_after_every_period(run: Run, name: str) -> None:
    strategy = STRATEGIES[name](run.setting)
    for t in range(1, LAST + 1):
        plan = strategy.plan(t)
        if plan is None:
            continue
        test = run.encoder(run.periods.rows(t + 1).take(slice(0, 20)))
        found = [scores(run, m, test) for m in models(run, strategy.name, t, plan)]
        assert all(np.isfinite(s).all() and (s > 0).all() and (s < 1).all() for s in found)
        # period 1 has one adapter in both roles; in period 2 <= m the long-term one is another
        if len(found) > 1 and t > 1:
            assert not np.allclose(found[0], found[-1], atol=1e-7)


def test_the_ends_of_every_exact_merge_are_the_single_rows(run: Run) -> None:
    test = run.encoder(run.periods.rows(4).take(slice(0, 20)))
    single = [
        scores(run, models(run, n, 3, STRATEGIES[n](run.setting).plan(3))[0], test)  # type: ignore[arg-type]
        for n in ("short-term", "long-term")
    ]
    for name in ("lsat-en", "lsat-en-logit", "lsat-ta", "lsat-delta", "lsat-linear", "lsat-svd"):
        plan = STRATEGIES[name](run.setting).plan(3)
        assert plan is not None
        short, _, long = (scores(run, m, test) for m in models(run, name, 3, plan))
        np.testing.assert_allclose(short, single[0], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(long, single[1], atol=1e-5, err_msg=name)


def test_replay_trains_on_more_rows_and_cumulative_rows_grow(run: Run) -> None:
    replay = STRATEGIES["replay"](run.setting).plan(3)
    assert replay is not None
    spec = replay.adapters[0]
    rows = training_rows(run.periods, spec.train, spec.replay, spec.seed)
    assert len(rows) == len(run.periods.select((Slice(3, "train"), Slice(2, "validation")))) + 30
    plan = STRATEGIES["cumulative"](run.setting).plan(3)
    assert plan is not None
    assert run.store.load(plan.adapters[0].digest).rank == 6
    assert len(run.trained) == len({s.digest for s in run.trained}) == len(run.store.digests())
