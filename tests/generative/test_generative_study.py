"""What the table is made of: mixtures, item collisions, statistics, and what a config may not say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lsat_ray.config import BackboneConfig, EngineConfig, Experiment, GenerativeConfig, LoraSettings, NanoConfig, Recipe
from lsat_ray.errors import LsatError
from lsat_ray.generative import blocks as blocks_module
from lsat_ray.generative import study, synthetic
from lsat_ray.generative.rules import GRIDS, Plan
from lsat_ray.generative.study import COLUMNS, Bench, paired, summarise


@pytest.fixture
def config(tmp_path: Path) -> Experiment:
    torch.set_num_threads(1)
    folder = tmp_path / "log"
    blocks_module.write(synthetic.generate(users=60, items=60, size=4, blocks=3, seed=1), folder)
    return Experiment(
        strategies=("single-evolving",),
        data={"format": "blocks", "path": str(folder)},  # type: ignore[arg-type]
        backbone=BackboneConfig(
            device="cpu", nano=NanoConfig(hidden=32, layers=2, heads=4, context=256, epochs=1, batch_size=16)
        ),
        lora=LoraSettings(rank=4, alpha=8),
        recipe=Recipe(lr=5e-3, batch_size=16, epochs=1),
        generative=GenerativeConfig(history=8),
        engine=EngineConfig(backend="local"),
    )


def bench(config: Experiment, root: Path) -> Bench:
    blocks = study.load_blocks(config)
    folder = study.weights(config, blocks, root / "backbones", print)
    return Bench(config, blocks, root, folder, print)


def test_a_single_weight_of_a_mixture_is_the_single_model(config: Experiment, tmp_path: Path) -> None:
    run = bench(config, tmp_path / "run")
    base = run.setting(0)
    one, two = base.spec(1), base.spec(2)
    rows = run.blocks.tests(2, "leave-two-out")
    alone, weights = run.search(Plan((two,)), 2, rows)
    assert weights == (1.0,)
    for merge in ("output-ensemble", "factor-arithmetic"):
        merged, weights = run.search(Plan((one, two), merge, ((0.0, 1.0),)), 2, rows)  # type: ignore[arg-type]
        assert weights == (0.0, 1.0)
        assert np.array_equal(merged.leaf, alone.leaf)


def test_the_chosen_weight_is_the_likeliest_on_validation(config: Experiment, tmp_path: Path) -> None:
    run = bench(config, tmp_path / "run")
    base = run.setting(0)
    adapters = [run.adapter(base.spec(1)), run.adapter(base.spec(2))]
    grid = ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0))
    chosen = run.choose(Plan((base.spec(1), base.spec(2)), "output-ensemble", grid), adapters, 2)
    encoded = study.encode_targets(run.blocks, run.blocks.rows(2, "validation"), run.model.codes, 8)
    each = [np.exp(run.likelihood(a, encoded)) for a in adapters]
    values = [np.log(w[0] * each[0] + w[1] * each[1]).mean() for w in grid]
    assert chosen == grid[int(np.argmax(values))]


def test_lambda_is_chosen_on_the_first_penalised_link_and_kept(config: Experiment, tmp_path: Path) -> None:
    run = bench(config, tmp_path / "run")
    first = run.models("peso", 0, 1)
    assert len(first) == 1 and len(run.adapters.digests()) == 1, "D_1 knows no lambda, and V_2 is not read for it"
    chosen = run.rule("peso", 0, 3)
    losses = {rule: run.models(rule, 0, 2)[0]["loss"] for rule in GRIDS["peso"]}
    assert losses[chosen] == min(losses.values()) and chosen == run.rule("peso", 0, 2)
    assert run.plan("peso", 0, 3) == run.plan(chosen, 0, 3)
    assert run.beams("peso") == run.beams(chosen) and run.beams("sasrec/pretrain") == run.beams("popular") == (0,)


def test_counting_items_can_only_lower_the_figures(config: Experiment, tmp_path: Path) -> None:
    log = study.load_blocks(config)
    folder = tmp_path / "shared"
    codes = log.codes.copy()
    codes[1::2] = codes[::2]  # every other item takes its neighbour's codes
    blocks_module.write(blocks_module.Blocks(log.users, log.items, codes, log.user, log.item, log.block), folder)
    found = {}
    for how in ("code", "item"):
        own = config.generative.model_copy(update={"collisions": how})
        data = config.data.model_copy(update={"path": str(folder)})
        run = bench(config.model_copy(update={"generative": own, "data": data}), tmp_path / "run")
        found[how] = run.measure("pretrain", 0, 2, 10).values["ndcg10"]
    assert (found["item"] <= found["code"]).all() and found["item"].sum() < found["code"].sum()


def test_a_paired_difference_of_a_shift_is_that_shift() -> None:
    base = pd.DataFrame(
        {
            "block": [1, 1, 2, 2],
            "row": [0, 1, 2, 3],
            "user": [0, 1, 0, 1],
            "group": "new",
            "seed": 0,
            "strategy": "a",
            "beams": 10,
        }
    ).assign(hit5=0.1, hit10=0.2, ndcg5=0.1, ndcg10=[0.1, 0.3, 0.2, 0.4])
    better = base.assign(strategy="b", ndcg10=base["ndcg10"] + 0.05)
    both = pd.concat([base, better])
    row = paired(both, "a").iloc[0]
    assert (row["strategy"], row["beams"], row["reference"]) == ("b", 10, "a")
    assert [row["difference"], row["low"], row["high"]] == pytest.approx([0.05, 0.05, 0.05])
    assert row["p"] == row["p_adjusted"] == pytest.approx(0.5, abs=0.05), "two users: half of the swaps are as large"
    table = summarise(both)
    assert list(table.columns) == COLUMNS
    table = table.set_index(["strategy", "block"])
    assert table.loc[("a", "mean"), "ndcg10"] == pytest.approx(0.25)
    assert table.loc[("b", 2), "ndcg10"] == pytest.approx(0.35)


def test_a_row_without_beams_is_compared_with_the_most() -> None:
    one = {"block": 1, "row": 0, "user": 0, "group": "new", "seed": 0, "hit5": 0.0, "hit10": 0.0, "ndcg5": 0.0}
    lines = [("a", 10, 0.1), ("a", 40, 0.3), ("b", 10, 0.2), ("popular", 0, 0.2)]
    values = pd.DataFrame([{**one, "strategy": s, "beams": b, "ndcg10": v} for s, b, v in lines])
    found = paired(values, "a").set_index("strategy")["difference"]
    assert found["b"] == pytest.approx(0.1) and found["popular"] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("", {"strategies": ("nothing",)}, "'nothing' is unknown"),
        ("recipe", {"select": "auc"}, "recipe.select"),
        ("data", {"path": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_bad_input_is_one_line(config: Experiment, section: str, changes: dict[str, object], message: str) -> None:
    if section:
        changes = {section: getattr(config, section).model_copy(update=changes)}
    with pytest.raises(LsatError, match=message):
        study.load_blocks(config.model_copy(update=changes))
