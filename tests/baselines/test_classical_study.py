"""The study of the classical rivals resumes from its checkpoints and writes its table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lsat_ray.baselines.naive import NAMES, PERIOD_RATE


@pytest.fixture
def study() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "classical_study.py"
    spec = importlib.util.spec_from_file_location("classical_study", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "log"
    folder.mkdir()
    movies = [f'{i},"Movie {i} (19{70 + i % 30})",Drama' for i in range(1, 31)]
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "\n".join(movies) + "\n")
    rows = [f"{u},{i},{rng.integers(1, 6)}.0,{900_000_000 + n}" for n, (u, i) in enumerate(_events(rng))]
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(rows) + "\n")
    return folder


def _events(rng: np.random.Generator) -> list[tuple[int, int]]:
    pairs = [(u, i) for u in range(1, 21) for i in range(1, 31)]
    return [pairs[k] for k in rng.permutation(len(pairs))]


def test_the_study_resumes_and_writes_its_table(
    study: Any, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--keep-last", "300", "--periods", "4", "--seeds", "0", "--rows", "logistic/fine-tuning"]
    places = ["--log", str(log), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["classical_study", *settings, *places])
    study.main()
    first = pd.read_csv(tmp_path / "out.csv")
    assert set(first.row) == {*NAMES, PERIOD_RATE, "logistic/fine-tuning"}
    assert first.period.min() == 2 and first.period.max() == 4 and first.auc.between(0, 1).all()
    assert "| logistic/fine-tuning |" in (tmp_path / "out.md").read_text()
    monkeypatch.setattr(study, "replay", lambda *_: pytest.fail("the checkpoint was not used"))
    study.main()
    pd.testing.assert_frame_equal(first, pd.read_csv(tmp_path / "out.csv"))
    assert "seed 0" in capsys.readouterr().out
