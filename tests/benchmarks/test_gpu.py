"""The GPU benchmark in small on a CPU: every part runs, is written as it ends, and an error stays in its part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_part_runs_in_small_without_ray_and_deepspeed(tmp_path: Path) -> None:
    out = tmp_path / "toy.json"
    code = (
        "import sys; sys.modules.update(ray=None, deepspeed=None, typer=None, fastapi=None)\n"
        f"from benchmarks import gpu; sys.exit(gpu.main(['--json', {str(out)!r}, '--device', 'cpu', '--toy']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert not [name for name, part in parts.items() if "error" in part or "skipped" in part]
    assert parts["parity"]["ok"]
    assert len(parts["parity"]["ways"]) == 16
    assert parts["throughput_1b"]["exact_ratio"] > 0
    assert parts["throughput_1b"]["memory"]["kept_mib"] > 0
    assert parts["scoring"]["rows_per_s"] > 0
    assert "full-retraining" in parts["replay"]["auc"]


def test_an_error_stays_in_its_part_and_what_does_not_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> dict[str, Any]:
        raise ValueError("no kernel")

    out = tmp_path / "some.json"
    seen: list[list[str]] = []

    def look(_: Any) -> dict[str, Any]:
        seen.append(list(json.loads(out.read_text())["parts"]))
        return {}

    parts = {"first": (broken, 0.0), "second": (look, 0.0), "third": (look, 1e9)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.main(["--json", str(out), "--device", "cpu"]) == 1
    tree = json.loads(out.read_text())["parts"]
    assert seen == [["first"]], "the first part was written before the second began"
    assert tree["first"]["error"] == "ValueError: no kernel"
    assert "minutes were left" in tree["third"]["skipped"]
