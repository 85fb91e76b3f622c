"""A dozen drawn faults; `make chaos` draws 200."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.faults import KINDS, RAY_KINDS, sample
from tests.chaos.harness import WHOLE, Place, compare, drill


@pytest.mark.timeout(900)
def test_a_dozen_faults_leave_identical_results(tmp_path: Path) -> None:
    """Two of each kind: SIGKILL, a full disk, a crash, a torn ledger, a flipped byte, half-written drafts."""
    table = drill(Place(tmp_path, "local"), 12, 7, KINDS, print, workers=2)
    assert table["identical"] == 12, [f for f in table["faults"] if f["outcome"] != "identical"]
    assert table["passed"] > 300, "the run passes fewer points than it writes files"
    whole = tmp_path / WHOLE
    ledger = (whole / "ledger.jsonl").read_text()

    # The comparison itself must see what it is there for.
    broken = tmp_path / f"fault-000-{KINDS[0]}"
    lines = ledger.splitlines(keepends=True)
    for content, seen in (
        ("".join(lines[:-1]), "lost"),
        (ledger + lines[-1], "doubled"),
        (ledger.replace('"rows": ', '"rows": 1'), "different"),
    ):
        (broken / "ledger.jsonl").write_text(content)
        assert compare(whole, broken).startswith(seen)
    (broken / "ledger.jsonl").write_text(ledger)
    (broken / "metrics.parquet").unlink()
    assert compare(whole, broken) == "lost: metrics.parquet"
    assert json.loads((tmp_path / "points.json").read_text())


def test_a_seed_draws_the_same_faults_of_every_kind_where_they_can_happen() -> None:
    points = ["before write a", "after write a", "before append ledger.jsonl", "after append ledger.jsonl"]
    points += ["before store x", "after store x", "before swap 1", "after swap 1"]
    faults = sample(points, 60, 4)
    assert faults == sample(points, 60, 4)
    assert faults != sample(points, 60, 5)
    assert {kind: sum(f.kind == kind for f in faults) for kind in KINDS} == dict.fromkeys(KINDS, 10)
    assert all(points[f.point] == f.name for f in faults)
    assert min(f.point for f in faults if f.kind == "flip") == 6
    assert min(f.point for f in faults if f.kind == "torn") == 4


def test_on_ray_processes_die_while_all_of_them_live() -> None:
    points = ["before write a", "after write a", "before swap 1", "after swap 1", "before record x", "after record x"]
    points += ["before swap 2", "after swap 2", "before write b", "after write b"]
    faults = sample(points, 45, 1, RAY_KINDS)
    assert {kind: sum(f.kind == kind for f in faults) for kind in RAY_KINDS} == dict.fromkeys(RAY_KINDS, 5)
    assert {f.point for f in faults if f.kind not in ("kill", "full")} == {3, 4, 5, 6, 7}
    assert min(f.point for f in faults if f.kind == "kill") < 3
