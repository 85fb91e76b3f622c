"""The benchmark of growing costs: its slopes, and one small run of every kind of point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cost_growth import slope, together

ROOT = Path(__file__).resolve().parents[2]


def test_a_slope_of_one_is_proportional_and_of_zero_free() -> None:
    points = [{"history": n, "cpu_s_per_target": n / 100.0} for n in (10, 50, 200)]
    assert slope("history", points) == 1.0
    assert slope("history", [{**p, "cpu_s_per_target": 7.0} for p in points]) == 0.0
    logs = [{"samples": n, "read_s": n / 300, "cut_s": n / 600} for n in (10, 100, 1000)]
    assert slope("samples", logs) == 1.0
    assert slope("workers", [{"workers": 1, "targets_per_s": 5.0}, {"workers": 2, "targets_per_s": 10.0}]) == -1.0


def test_workers_that_share_a_batch_cost_what_all_of_them_use() -> None:
    one = {"workers": 2, "targets_per_s": 60.0, "cpu_s_per_target": 0.02, "peak_mib": 500}
    other = {**one, "targets_per_s": 61.0, "cpu_s_per_target": 0.03, "peak_mib": 400}
    assert together([one, other]) == {**one, "cpu_s_per_target": 0.05, "peak_mib": 900}


@pytest.mark.slow
def test_it_writes_its_result_and_figure(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    small = ["--only", "history", "workers", "--smallest", "2", "--seconds", "0.2", "--json", str(out)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "cost_growth.py"), *small],
        check=True, capture_output=True, timeout=900, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    result = json.loads(out.read_text())
    ten, fifty = result["history"]["points"]
    assert fifty["tokens_per_prompt"] > ten["tokens_per_prompt"] and result["history"]["slope"] > 0
    assert [p["workers"] for p in result["workers"]["points"]] == [1, 2]
    assert all(p["targets_per_s"] > 0 and p["peak_mib"] > 100 for p in result["workers"]["points"])
    assert out.with_suffix(".svg").read_text().startswith("<?xml")
