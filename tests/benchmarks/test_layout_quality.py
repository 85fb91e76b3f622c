"""The quality of layouts is measured at toy size, and a run that was broken off goes on where it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import layout_quality


@pytest.mark.slow
def test_toy_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "quality.json"
    options = ["--toy", "--only", "synthetic", "--seeds", "0", "--epochs", "1", "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["layout_quality.py", *options, "--json", str(out)])
    layout_quality.main()
    tree = json.loads(out.read_text())
    rows = tree["data"]["synthetic"]
    assert [(r["layout"], r["backbone"]) for r in rows] == list(layout_quality.RUNS)
    assert rows[0]["gap"] == 0 and all(r["gap"] == rows[0]["mean"] - r["mean"] for r in rows)
    out.write_text(json.dumps(tree | {"data": {"synthetic": rows[:-2]}}))
    capsys.readouterr()
    layout_quality.main()
    again = json.loads(out.read_text())["data"]["synthetic"]
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert [r["auc"] for r in again] == [r["auc"] for r in rows]
