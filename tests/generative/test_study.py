"""The whole task on a small log: table, resume to the same bytes, mixtures, item collisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lsat_ray.config import BackboneConfig, Experiment, GenerativeConfig, LoraSettings, NanoConfig, Recipe
from lsat_ray.errors import LsatError
from lsat_ray.generative import blocks as blocks_module
from lsat_ray.generative import study, synthetic
from lsat_ray.generative.rules import Plan
from lsat_ray.generative.study import COLUMNS, Run, paired, run_blocks, summarise

ROWS = ("popular", "pretrain", "single-evolving", "peso(2)", "sumlora-all", "lsat-en", "lsat-ta")


@pytest.fixture
def config(tmp_path: Path) -> Experiment:
    torch.set_num_threads(1)
    folder = tmp_path / "log"
    blocks_module.write(synthetic.generate(users=60, items=60, size=4, blocks=3, seed=1), folder)
    return Experiment.model_validate(
        {
            "strategies": ROWS,
            "seeds": (0, 1),
            "data": {"path": str(folder)},
            "backbone": BackboneConfig(
                device="cpu", nano=NanoConfig(hidden=32, layers=2, heads=4, context=256, epochs=1, batch_size=16)
            ),
            "lora": LoraSettings(rank=4, alpha=8),
            "recipe": Recipe(lr=5e-3, batch_size=16, epochs=1),
            "generative": GenerativeConfig(history=8),
        }
    )


@pytest.mark.parametrize("split", ["leave-two-out", "next-period"])
def test_the_table_is_whole_and_a_second_call_trains_nothing(config: Experiment, tmp_path: Path, split: Any) -> None:
    own = config.generative.model_copy(update={"split": split})
    config = config.model_copy(update={"generative": own})
    told: list[str] = []
    table = run_blocks(config, tmp_path / "run", told.append)
    assert list(table.columns) == COLUMNS
    assert set(table["strategy"]) == set(ROWS)
    assert set(table["block"].astype(str)) == {"1", "2", "mean"}
    assert table.loc[table["strategy"] == "peso(2)", "seeds"].eq(2).all()
    values = table[["hit5", "hit10", "ndcg5", "ndcg10", "low", "high"]]
    assert values.to_numpy().min() >= 0 and values.to_numpy().max() <= 1
    assert (table["hit10"] >= table["hit5"]).all() and (table["low"] <= table["high"]).all()
    first = (tmp_path / "run" / "table.csv").read_bytes()
    assert any("validation loss" in line for line in told)
    again: list[str] = []
    run_blocks(config, tmp_path / "run", again.append)
    assert not any("validation loss" in line for line in again)
    assert (tmp_path / "run" / "table.csv").read_bytes() == first


def test_an_interrupted_run_ends_with_the_same_bytes(config: Experiment, tmp_path: Path) -> None:
    config = config.model_copy(update={"strategies": ("single-evolving", "sumlora-all", "lsat-en"), "seeds": (0,)})
    run_blocks(config, tmp_path / "whole")

    def stop(line: str) -> None:
        if "block 1 seed 0 sumlora-all" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_blocks(config, tmp_path / "broken", stop)
    assert not (tmp_path / "broken" / "table.csv").exists()
    run_blocks(config, tmp_path / "broken")
    for name in ("table.csv", "groups.csv", "paired.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_a_single_weight_of_a_mixture_is_the_single_model(config: Experiment, tmp_path: Path) -> None:
    run = Run(config, study.load_blocks(config), tmp_path / "run", lambda line: None)
    base = run.setting(0)
    one, two = base.spec(1), base.spec(2)
    rows = run.blocks.tests(2, "leave-two-out")
    alone = run.search(Plan((two,)), 2, rows)
    for merge in ("output-ensemble", "factor-arithmetic"):
        merged = run.search(Plan((one, two), merge, ((0.0, 1.0),)), 2, rows)  # type: ignore[arg-type]
        assert np.array_equal(merged.leaf, alone.leaf)


def test_the_chosen_weight_is_the_likeliest_on_validation(config: Experiment, tmp_path: Path) -> None:
    run = Run(config, study.load_blocks(config), tmp_path / "run", lambda line: None)
    base = run.setting(0)
    adapters = [run.adapter(base.spec(1)), run.adapter(base.spec(2))]
    grid = ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0))
    chosen = run.choose(Plan((base.spec(1), base.spec(2)), "output-ensemble", grid), adapters, 2)
    encoded = study.encode_targets(run.blocks, run.blocks.rows(2, "validation"), run.model.codes, 8)
    each = [np.exp(run.likelihood(a, encoded)) for a in adapters]
    values = [np.log(w[0] * each[0] + w[1] * each[1]).mean() for w in grid]
    assert chosen == grid[int(np.argmax(values))]


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
        changes = {"generative": own, "data": data, "strategies": ("pretrain",), "seeds": (0,)}
        found[how] = run_blocks(config.model_copy(update=changes), tmp_path / "run")
    assert (found["item"]["ndcg10"] < found["code"]["ndcg10"]).all()


def test_a_paired_difference_of_a_shift_is_that_shift() -> None:
    base = pd.DataFrame(
        {"block": [1, 1, 2, 2], "row": [0, 1, 2, 3], "user": [0, 1, 0, 1], "group": "new", "seed": 0, "strategy": "a"}
    ).assign(hit5=0.1, hit10=0.2, ndcg5=0.1, ndcg10=[0.1, 0.3, 0.2, 0.4])
    better = base.assign(strategy="b", ndcg10=base["ndcg10"] + 0.05)
    both = pd.concat([base, better])
    row = paired(both, "a").iloc[0]
    assert (row["strategy"], row["reference"]) == ("b", "a")
    assert [row["difference"], row["low"], row["high"]] == pytest.approx([0.05, 0.05, 0.05])
    table = summarise(both).set_index(["strategy", "block"])
    assert table.loc[("a", "mean"), "ndcg10"] == pytest.approx(0.25)
    assert table.loc[("b", 2), "ndcg10"] == pytest.approx(0.35)


def test_an_unknown_strategy_is_one_line(config: Experiment, tmp_path: Path) -> None:
    with pytest.raises(LsatError, match="'nothing' is unknown"):
        run_blocks(config.model_copy(update={"strategies": ("nothing",)}), tmp_path)
