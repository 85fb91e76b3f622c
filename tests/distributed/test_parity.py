"""Every engine gives one process's adapter on two workers: data parallel, ZeRO 0 to 3, with and without accumulation.

And each goes on from a checkpoint to the same bytes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", [1, *(pytest.param(z, marks=pytest.mark.slow) for z in (0, 2, 3))])
def test_two_workers_equal_one_process_and_go_on_exactly(stage: int, tmp_path: Path) -> None:
    out = tmp_path / "parity.json"
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, "benchmarks/zero_parity.py", "--workers", "2", "--json", str(out)]
    command += ["--stages", str(stage)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1140)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(out.read_text())["rows"]
    engines = ("data-parallel", f"zero{stage}")
    assert {r["engine"] for r in rows} == {f"{e}-micro{m}" for e in engines for m in (1, 2)}
    for row in rows:
        assert not row["some_weight_is_zero"], row
        if row["engine"].startswith("zero3"):
            assert 0.5 <= row["held"] < 0.51, "every rank loaded the whole backbone, and only then split it"
        else:
            assert row["held"] == 1.0
        assert row["resumed_equal"] is (True if row["engine"].endswith("micro2") else None), row
        # A fresh adapter agrees to rounding; one that goes on from it passes through AdamW's first, sign-like steps,
        # in which a gradient of 1e-9 that rounds the other way moves a weight by a learning rate's fraction.
        assert row["relative"] < (1e-4 if row["training"] == "fresh" else 5e-3), row
        assert row["margin_difference"] < 1e-4, row
