"""The benchmark of the personalised batch runs and reports what it says, on a small shape; no time is asserted."""

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
    small = ["--hidden", "16", "--layers", "1", "--batch", "2", "--rounds", "1", "--json", str(out)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "personalised_batch.py"), *small],
        check=True, capture_output=True, timeout=120, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    result = json.loads(out.read_text())
    seconds = result["seconds_a_step"]
    for mix in ("products", "factors"):
        assert result["over_plain"][mix] == seconds[mix] / seconds["plain"] > 0
        assert result["over_plain_with_a_shared_prefix"][mix] == seconds[mix] / seconds["plain_shared_prefix"] > 0
