"""The benchmark of the shared pass runs and reports what it says, on a small shape; no time is asserted."""

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
    small = ["--shapes", "toy", "--rounds", "1", "--json", str(out)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "ensemble_pass.py"), *small],
        check=True, capture_output=True, timeout=360, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    rows = json.loads(out.read_text())["shapes"]["toy"]
    for row in rows:
        assert row["margins_differ_by_at_most"] < 1e-6 and row["gain"]["low"] > 0
    assert {row["used"] for row in rows} == {True, False}
