"""The next-item task as a run: tables, ledger and report; what is killed ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from lsat_ray import config as configs
from lsat_ray.cli.app import app
from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError
from lsat_ray.generative import blocks as blocks_module
from lsat_ray.generative import synthetic
from lsat_ray.generative.study import COLUMNS
from lsat_ray.runs import blocks
from lsat_ray.runs.local import LocalBackend

ROOT = Path(__file__).resolve().parents[2]
RANKED = ("popular", "sasrec/single-evolving")
ROWS = (*RANKED, "pretrain", "single-evolving", "peso(2)", "sumlora-all", "lsat-en", "lsat-ta")
YAML = """
name: small
seeds: [0, 1]
strategies: {rows}
data: {{format: blocks, path: {log}}}
backbone: {{device: cpu, nano: {{hidden: 32, layers: 2, heads: 4, context: 256, epochs: 1, batch_size: 16}}}}
lora: {{rank: 4, alpha: 8}}
recipe: {{lr: 0.005, batch_size: 16, epochs: 1}}
baselines: {{epochs: 2}}
generative: {{history: 8, beams: [10, 12]}}
engine: {{backend: local, kind: torch}}
"""
TABLES = ("table.csv", "groups.csv", "paired.csv")
KILLED = """
import os, signal, sys
from pathlib import Path
from lsat_ray import config
from lsat_ray.runs import blocks
from lsat_ray.runs.local import LocalBackend
told = 0
def say(line):
    global told
    told += sys.argv[3] in line
    if told == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
config = config.load(sys.argv[1])
blocks.study(config, Path(sys.argv[2]), LocalBackend(config), say)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the file of a small experiment."""
    torch.set_num_threads(1)
    blocks_module.write(synthetic.generate(users=60, items=60, size=4, blocks=3, seed=1), tmp_path / "log")
    path = tmp_path / "small.yaml"
    path.write_text(YAML.format(rows=json.dumps(ROWS), log=tmp_path / "log"))
    return path


def quiet(line: str) -> None:
    """Hear a line and say nothing."""


def go(config: Experiment, runs: Path, say: Callable[[str], None] = quiet) -> Path:
    """Run a config on the local backend."""
    return blocks.study(config, runs, LocalBackend(config), say)


@pytest.mark.parametrize("split", ["leave-two-out", "next-period"])
def test_the_folder_is_whole_and_a_second_call_trains_nothing(file: Path, tmp_path: Path, split: str) -> None:
    config = configs.load(file, [f"generative.split={split}"])
    told: list[str] = []
    folder = go(config, tmp_path / "runs", told.append)
    table = pd.read_csv(folder / "table.csv")
    assert list(table.columns) == COLUMNS
    assert set(table["strategy"]) == set(ROWS) and set(table["block"].astype(str)) == {"1", "2", "mean"}
    searched = table[table["strategy"] == "peso(2)"]
    assert set(searched["beams"]) == {10, 12} and searched["seeds"].eq(2).all()
    assert set(table.loc[table["strategy"].isin(RANKED), "beams"]) == {0}
    values = table[["hit5", "hit10", "ndcg5", "ndcg10", "low", "high"]]
    assert values.to_numpy().min() >= 0 and values.to_numpy().max() <= 1
    assert (table["hit10"] >= table["hit5"]).all() and (table["low"] <= table["high"]).all()
    assert {p.name for p in folder.iterdir()} >= {*TABLES, "config.resolved.yaml", "versions.json", "report.html"}

    ratios = pd.read_csv(folder / "penalties.csv")
    assert set(ratios["strategy"]) == set(ratios["rule"]) == {"peso(2)"}
    assert ratios["block"].tolist() == 2 * ([1, 2] if split == "leave-two-out" else [1])
    assert ratios["penalty_ratio"].between(1e-12, 1).all()

    records = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    keys = [(r["seed"], r["strategy"], r["period"], r["stage"]) for r in records]
    assert len(set(keys)) == len(keys)
    stages = {0: {"train", "score-10", "score-12"}, 1: {"train", "score-10", "score-12"}}
    assert {s: {k[3] for k in keys if k[:2] == (s, "peso(2)")} for s in (0, 1)} == stages
    assert {k[0] for k in keys if k[1] == "popular"} == {0}
    assert all(len(r["digest"]) == 64 for r in records)

    before = {name: (folder / name).read_bytes() for name in (*TABLES, "ledger.jsonl")}
    assert any("validation loss" in line for line in told)
    again: list[str] = []
    go(config, tmp_path / "runs", again.append)
    assert not any("validation loss" in line or line.startswith("sasrec ") for line in again)
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(file: Path, tmp_path: Path) -> None:
    """Kill after a model was stored and not recorded, and between two stages of a row; then go on."""
    config = configs.load(file, ["seeds=[0]"])
    file.write_text(config.to_yaml())
    whole = go(config, tmp_path / "whole")
    for words, times in (("AdapterSpec(", 2), ("sasrec/single-evolving: NDCG@10", 1), ("block 1 seed 0 lsat-en", 1)):
        command = [sys.executable, "-c", KILLED, str(file), str(tmp_path / "broken"), words, str(times)]
        died = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
        assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    broken = tmp_path / "broken" / "small"
    assert not (broken / "table.csv").exists() and (broken / "ledger.jsonl").exists()
    assert go(config, tmp_path / "broken") == broken
    for name in (*TABLES, "ledger.jsonl", "report.html", "config.resolved.yaml"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    for store in blocks.STORES:
        weights = {p.relative_to(whole): p.read_bytes() for p in (whole / store).glob("*/*.safetensors")}
        assert weights and {p: (broken / p).read_bytes() for p in weights} == weights


def test_a_damaged_search_is_made_again(file: Path, tmp_path: Path) -> None:
    config = configs.load(file, ["seeds=[0]", "strategies=[single-evolving]"])
    folder = go(config, tmp_path)
    before = (folder / "table.csv").read_bytes()
    hurt = sorted((folder / "searches").glob("*/adapter_model.safetensors"))[0]
    hurt.write_bytes(hurt.read_bytes()[:-1])
    told: list[str] = []
    go(config, tmp_path, told.append)
    assert any("damaged" in line for line in told)
    assert (folder / "table.csv").read_bytes() == before


def test_a_row_may_be_added_to_a_run(file: Path, tmp_path: Path) -> None:
    rows = ["single-evolving", "peso(2)"]
    one = configs.load(file, ["seeds=[0]", "strategies=[single-evolving]"])
    folder = go(one, tmp_path)
    told: list[str] = []
    go(configs.load(file, ["seeds=[0]", f"strategies={json.dumps(rows)}"]), tmp_path, told.append)
    assert sum("validation loss" in line for line in told) == 2  # blocks 1 and 2 of the new row
    assert list(dict.fromkeys(pd.read_csv(folder / "table.csv")["strategy"])) == rows


def test_the_command_line_runs_and_checks_it(file: Path, tmp_path: Path) -> None:
    checked = CliRunner().invoke(app, ["validate", str(file)])
    assert checked.exit_code == 0 and "60 items in 3 blocks" in checked.output, checked.output
    command = ["study", "--config", str(file), "--runs-dir", str(tmp_path / "runs"), "--set", "strategies=[popular]"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "table.csv" in done.output, done.output
    replayed = CliRunner().invoke(app, ["replay", *command[1:]])
    assert replayed.exit_code == 2 and "lsat-ray study" in replayed.output


@pytest.mark.parametrize("name", ["peso_video_games", "peso_cds"])
def test_a_shipped_config_is_read_and_its_counts_are_the_published(name: str) -> None:
    config: Experiment = configs.load(ROOT / f"jobs/configs/{name}.yaml")
    assert config.data.format == "blocks"
    if "LSAT_RAY_DATA" not in os.environ:
        pytest.skip("LSAT_RAY_DATA is not set")
    try:
        assert "in 5 blocks" in blocks.check(config).line()
    except LsatError as error:
        if "does not exist" not in str(error):
            raise
        pytest.skip(str(error))
