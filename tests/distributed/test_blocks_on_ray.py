"""The next-item task on Ray: the sessions of the other task fit and search, and the bytes are those of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lsat_ray.generative import blocks, synthetic
from lsat_ray.runs.blocks import STORES

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = """
strategies: [popular, sasrec/single-evolving, single-evolving, peso, peso-output(2), inf-lora, lsat-en]
backbone: {device: cpu, nano: {hidden: 32, layers: 2, heads: 4, context: 256, epochs: 1, batch_size: 16}}
lora: {rank: 4, alpha: 8}
recipe: {lr: 0.005, batch_size: 16, epochs: 1}
baselines: {epochs: 2}
generative: {history: 8, beams: [10]}
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_study_of_blocks_is_the_same_on_ray_and_in_one_process(tmp_path: Path) -> None:
    blocks.write(synthetic.generate(users=60, items=60, size=4, blocks=3, seed=1), tmp_path / "log")
    (tmp_path / "small.yaml").write_text(f"data: {{format: blocks, path: {tmp_path / 'log'}}}\n{CONFIG}")
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PYTHONPATH": str(ROOT)}
    for name, sets in (("local", ["engine.backend=local"]), ("ray", ["engine.backend=ray", "engine.sessions=2"])):
        line = [sys.executable, "-m", "lsat_ray", "study", "--config", "small.yaml", "--runs-dir", str(tmp_path)]
        line += ["--name", name, *(part for s in sets for part in ("--set", s))]
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    one, other = tmp_path / "local", tmp_path / "ray"
    for file in ("table.csv", "groups.csv", "paired.csv", "penalties.csv", "ledger.jsonl"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    for store in STORES:
        weights = {p.relative_to(one): p.read_bytes() for p in (one / store).glob("*/*.safetensors")}
        assert weights and {p: (other / p).read_bytes() for p in weights} == weights
    trained = pd.DataFrame(json.loads(text) for text in (other / "timings.jsonl").read_text().splitlines())
    assert set(trained["stage"]) >= {"train", "score"}, "the sessions say how long each task took"
    assert (other / "train" / "session0").is_dir() and (other / "train" / "session1").is_dir()
