"""The paper's order beside ours: pairs, words, and the folder that is written from a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.peso_ordering import CLAIMS, Claim, agreement, ordering, publish
from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError
from lsat_ray.generative import blocks as blocks_module
from lsat_ray.generative import synthetic
from lsat_ray.generative.study import ROWS
from lsat_ray.runs import blocks
from lsat_ray.runs.local import LocalBackend


def test_every_claim_is_about_rows_that_exist() -> None:
    assert {name for claim in CLAIMS for name in claim[:2]} <= set(ROWS)


def test_a_pair_agrees_contradicts_or_says_nothing() -> None:
    users = np.arange(200)
    noise = np.random.default_rng(0).normal(scale=0.01, size=200)
    base = pd.DataFrame({"block": 1, "row": users, "user": users, "seed": 0, "beams": 10})
    rows = {"a": 0.5 + noise, "b": np.full(200, 0.4), "c": 0.4 + noise - noise.mean() + 1e-5, "d": np.full(200, 0.4)}
    values = pd.concat([base.assign(strategy=name, ndcg5=value) for name, value in rows.items()])
    claims = tuple(Claim(*pair, "here") for pair in ("ab", "ba", "cb", "bc", "bd", "xy"))
    found = ordering(values, claims).set_index(["better", "worse"])
    assert found.loc[("a", "b"), "difference"] == pytest.approx(0.1, abs=0.01)
    assert found["agreement"].tolist() == [
        "agrees", "contradicts", "same sign, not significant", "opposite sign, not significant", "equal",
    ]  # fmt: skip
    with pytest.raises(LsatError, match="no two rows"):
        ordering(values, (Claim("x", "y", "here"),))


def test_holm_decides() -> None:
    assert agreement(0.1, 0.05, 0.15, 0.2) == "same sign, not significant"


def test_a_run_is_published(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    blocks_module.write(synthetic.generate(users=60, items=60, size=4, blocks=3, seed=1), tmp_path / "log")
    tree = {
        "name": "small",
        "seeds": (0,),
        "strategies": ("single-evolving", "inf-lora", "peso", "popular"),
        "data": {"format": "blocks", "path": str(tmp_path / "log")},
        "backbone": {
            "device": "cpu",
            "nano": {"hidden": 32, "layers": 2, "heads": 4, "context": 256, "epochs": 1, "batch_size": 16},
        },
        "lora": {"rank": 2, "alpha": 4},
        "recipe": {"lr": 5e-3, "batch_size": 16, "epochs": 1},
        "generative": {"history": 8, "beams": (10,)},
        "engine": {"backend": "local", "kind": "torch"},
    }
    config = Experiment.model_validate(tree)
    with pytest.raises(LsatError, match="to the end"):
        publish(tmp_path / "runs" / "small", tmp_path / "results")
    run = blocks.study(config, tmp_path / "runs", LocalBackend(config), lambda line: None)
    folder = publish(run, tmp_path / "results")
    assert {p.name for p in folder.iterdir()} == {
        "table.csv", "groups.csv", "paired.csv", "ordering.csv", "ordering.md", "config.resolved.yaml", "versions.json",
        "penalties.csv",
    }  # fmt: skip
    pairs = pd.read_csv(folder / "ordering.csv")
    assert set(zip(pairs["better"], pairs["worse"], strict=True)) == {
        ("peso", "single-evolving"), ("peso", "inf-lora"), ("single-evolving", "inf-lora"),
    }  # fmt: skip
    assert "Of 3 pairs" in (folder / "ordering.md").read_text()
