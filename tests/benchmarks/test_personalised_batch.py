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
        check=True, capture_output=True, timeout=360, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    result = json.loads(out.read_text())
    for mix in ("products", "factors"):
        for base in ("over_plain", "over_plain_with_a_shared_prefix"):
            found = result[base][mix]
            assert 0 < found["low"] <= found["median"] <= found["high"]
    assert result["floor"]["median"] > 0 and set(result["seconds_a_step"]) == {
        "plain", "plain_shared_prefix", "products", "factors",
    }  # fmt: skip
