"""The ledger: durable, append-only, readable after a torn write."""

import os
from pathlib import Path

import pytest

from lsat_ray.errors import LsatError
from lsat_ray.report.reader import RunReader
from lsat_ray.runs.ledger import Ledger


def test_records_survive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).append(0, "a", 3, "score", auc=0.5)
    assert Ledger(path).get(0, "a", 3, "score") == {
        "seed": 0,
        "strategy": "a",
        "period": 3,
        "stage": "score",
        "auc": 0.5,
    }
    assert Ledger(path).get(1, "a", 3, "score") is None


def test_a_stage_is_recorded_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append(0, "a", 3, "score", auc=0.5)
    before = path.read_bytes()
    ledger.append(0, "a", 3, "score", auc=0.9)
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", range(1, 20, 3))
def test_a_torn_last_line_is_dropped_and_can_be_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append(0, "a", 1, "score", auc=0.25)
    ledger.append(0, "a", 2, "score", auc=0.75)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    resumed = Ledger(path)
    assert resumed.get(0, "a", 1, "score") is not None
    assert resumed.get(0, "a", 2, "score") is None
    resumed.append(0, "a", 2, "score", auc=0.75)
    assert path.read_bytes() == whole


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append(0, "a", 1, "score")
    ledger.append(0, "a", 2, "score")
    lines = path.read_text().splitlines()
    path.write_text("{broken\n" + lines[1] + "\n")
    with pytest.raises(LsatError, match=r"ledger\.jsonl: line 1 .*delete the file"):
        Ledger(path)


def test_an_edited_strategy_of_the_same_name_is_done_again_and_shown_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append(0, "a", 3, "score", auc=0.5, digest="old")
    ledger.append(0, "b", 3, "score", auc=0.6, digest="old")
    assert ledger.get(0, "a", 3, "score", digest="old") == ledger.get(0, "a", 3, "score")
    assert ledger.get(0, "a", 3, "score", digest="new") is None
    ledger.append(0, "a", 3, "score", auc=0.9, digest="new")
    for read in (ledger, Ledger(path)):
        assert read.get(0, "a", 3, "score", digest="old") is None
        assert [(r["strategy"], r["auc"]) for r in read.records("score")] == [("b", 0.6), ("a", 0.9)]
        assert len(read) == 2
    before = path.read_bytes()
    ledger.append(0, "a", 3, "score", auc=0.1, digest="new")
    ledger.append(0, "a", 3, "score", auc=0.1)
    assert path.read_bytes() == before
    assert [r["auc"] for r in RunReader(tmp_path).ledger] == [0.6, 0.9]


def test_a_record_without_a_digest_does_not_vouch_for_a_plan_that_has_one(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(0, "a", 3, "score", auc=0.5)
    assert ledger.get(0, "a", 3, "score", digest="new") is None


def test_a_line_written_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:5]))
    path = tmp_path / "ledger.jsonl"
    Ledger(path).append(0, "a", 3, "score", auc=0.5)
    assert Ledger(path).get(0, "a", 3, "score") is not None
