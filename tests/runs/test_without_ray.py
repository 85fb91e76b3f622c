"""The local backend where neither Ray nor DeepSpeed can be imported: a replay that is killed, and a study."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

from rayless import finish, start

CONFIG = """
data: {format: synthetic, keep_last: 480, synthetic: {users: 30, items: 60, warmup: 200, half_life: 192}}
periods: {number: 5, validation: 0.2}
replay: {long_periods: 2}
backbone: {nano: {hidden: 32, vocabulary: 420, epochs: 1}}
recipe: {lr: 0.005, epochs: 1, batch_size: 32}
engine: {backend: local}
study: {figures: false}
"""


def code(folder: Path, name: str, order: str = "replay") -> str:
    """Return the program of one run."""
    config = folder / "tiny.yaml"
    config.write_text(CONFIG)
    return (
        "import lsat_ray\n"
        f"config = lsat_ray.load_config({str(config)!r}, name={name!r})\n"
        f"print(lsat_ray.{order}(config, {str(folder / 'runs')!r}))\n"
    )


def bytes_of(run: Path) -> dict[str, str]:
    """Return the digests of metrics, ledger, scores and adapters."""
    files = [run / "metrics.parquet", run / "ledger.jsonl"]
    files += [f for f in sorted((run / "adapters").rglob("*")) + sorted((run / "scores").rglob("*")) if f.is_file()]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_killed_and_started_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    finish(start(code(tmp_path, "whole"), tmp_path))
    runs = tmp_path / "runs"
    killed = start(code(tmp_path, "killed"), tmp_path)
    deadline = time.monotonic() + 120
    while len(list((runs / "killed" / "adapters").glob("*/manifest.json"))) < 5:
        assert time.monotonic() < deadline and killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (runs / "killed" / "metrics.parquet").exists()
    assert "RESUMED" in finish(start(code(tmp_path, "killed"), tmp_path))
    assert bytes_of(runs / "killed") == bytes_of(runs / "whole")
    assert "nothing left to do" in finish(start(code(tmp_path, "killed"), tmp_path))


def test_a_study_needs_no_cluster(tmp_path: Path) -> None:
    finish(start(code(tmp_path, "study", "study"), tmp_path))
    assert (tmp_path / "runs" / "study" / "table2.csv").is_file()
