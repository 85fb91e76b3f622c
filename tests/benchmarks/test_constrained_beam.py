"""The benchmark of the constrained beam runs and reports what it says, on a small catalogue; no time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_it_writes_its_result(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    small = ["--items", "200", "--hidden", "16", "--rows", "2", "--batch", "4", "--rounds", "1", "--json", str(out)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "constrained_beam.py"), *small],
        check=True, capture_output=True, timeout=360, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    result = json.loads(out.read_text())
    assert result["items"] == result["semantic_ids"] == 200
    seconds = result["seconds_a_history"]
    assert result["speedup"] == seconds["exhaustive"] / seconds["beam"] > 0
    assert result["speedup_range"] == [result["speedup"]] * 2
