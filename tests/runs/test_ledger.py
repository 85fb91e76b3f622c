"""The ledger: durable, append-only, readable after a torn write."""

from pathlib import Path

import pytest

from lsat_ray.runs.ledger import Ledger
from lsat_ray.errors import LsatError


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
