"""Local and Ray give the same metrics, ledger and adapters, byte for byte, where the engine is the same."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def run(folder: Path, config: str, name: str, *sets: str, command: str = "replay") -> Path:
    """Run a shipped config as a user does."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    options = ["--config", f"jobs/configs/{config}.yaml", "--runs-dir", str(folder), "--name", name]
    options += [part for s in ("engine.kind=torch", *sets) for part in ("--set", s)]
    line = [sys.executable, "-m", "lsat_ray", command, *options]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=4500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / name


def bytes_of(folder: Path) -> dict[str, str]:
    """Return the digests of metrics, ledger, scores and adapters."""
    files = [folder / "metrics.parquet", folder / "ledger.jsonl"]
    files += [f for part in ("adapters", "scores") for f in sorted((folder / part).rglob("*")) if f.is_file()]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("config", ["smoke", "synthetic"])
def test_a_replay_is_the_same_on_ray_and_in_one_process(tmp_path: Path, config: str) -> None:
    ray = run(tmp_path, config, "ray", "serve.port=18531")
    local = run(tmp_path, config, "local", "engine.backend=local")
    assert bytes_of(local) == bytes_of(ray)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2700)
def test_a_study_is_the_same_on_ray_and_in_one_process(tmp_path: Path) -> None:
    ray = run(tmp_path, "study_synthetic", "ray", command="study")
    local = run(tmp_path, "study_synthetic", "local", "engine.backend=local", command="study")
    assert bytes_of(local) == bytes_of(ray)
