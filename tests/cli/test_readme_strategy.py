"""README's own strategy, saved as a file, runs from the command line as printed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = "strategies=[full-retraining, window]"


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """Return README's snippet as a file."""
    section = (ROOT / "README.md").read_text().partition("\n## Add a strategy")[2].partition("\n## ")[0]
    block = re.search(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert block
    file = tmp_path / "my_rules.py"
    file.write_text(block.group(1))
    return file


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "lsat_ray", *words, "--set", ROWS]
    return subprocess.run(call, cwd=folder, env=env, capture_output=True, text=True, timeout=1500)


def test_it_is_validated(rules: Path, tmp_path: Path) -> None:
    config = str(ROOT / "jobs/configs/smoke.yaml")
    done = command("validate", config, "--import", "my_rules.py", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    done = command("validate", config, folder=tmp_path)
    assert done.returncode == 2 and "'window' is unknown" in done.stdout


@pytest.mark.skipif(not importlib.util.find_spec("lsat_ray.runs.local"), reason="the local backend is not there yet")
def test_it_is_replayed(rules: Path, tmp_path: Path) -> None:
    config = str(ROOT / "jobs/configs/smoke.yaml")
    words = ["replay", "--config", config, "--import", "my_rules.py", "--runs-dir", "runs"]
    done = command(*words, "--set", "engine.backend=local", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = pd.read_parquet(tmp_path / "runs" / "smoke" / "metrics.parquet")
    assert {"full-retraining", "window(3)"} <= set(metrics["strategy"])
