"""MovieLens in its layouts, on tiny files; the facts of the real small edition where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lsat_ray.config import DataConfig
from lsat_ray.data import load, movielens
from lsat_ray.data.windows import windows
from lsat_ray.errors import LsatError

ROWS = [(7, 20, 5, 100), (7, 10, 3, 90), (3, 20, 4, 100), (3, 30, 1, 120)]
TITLES = {10: "Misérables, Les (1995)", 20: "Toy Story (1995)", 30: "None"}


def csv_edition(folder: Path, rows: list[str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [",".join(map(str, r)) for r in ROWS] if rows is None else rows
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows]) + "\n")
    movies = [f'{i},"{t}",Drama' for i, t in TITLES.items()]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]) + "\n", encoding="utf-8")
    return folder


def dat_edition(folder: Path) -> Path:
    folder.mkdir()
    (folder / "ratings.dat").write_text("".join("::".join(map(str, r)) + "\n" for r in ROWS))
    text = "".join(f"{i}::{t}::Drama|War\n" for i, t in TITLES.items())
    (folder / "movies.dat").write_bytes(text.encode("iso-8859-1"))
    return folder


def small_edition(folder: Path) -> Path:
    folder.mkdir()
    (folder / "u.data").write_text("".join("\t".join(map(str, r)) + "\n" for r in ROWS))
    text = "".join(f"{i}|{t}|01-Jan-1995||http://example.invalid|0|1\n" for i, t in TITLES.items())
    (folder / "u.item").write_bytes(text.encode("iso-8859-1"))
    return folder


@pytest.mark.parametrize("edition", [csv_edition, dat_edition, small_edition])
def test_every_layout_gives_the_same_table(edition, tmp_path):
    log = movielens.read(edition(tmp_path / "log"), positive_above=3)
    assert log.user_ids[log.user].tolist() == ["7", "7", "3", "3"]
    assert log.item_ids[log.item].tolist() == ["20", "10", "20", "30"]
    assert [log.titles[i] for i in log.item] == [TITLES[i] for _, i, _, _ in ROWS]
    assert log.label.tolist() == [1, 0, 1, 0]
    assert log.timestamp.tolist() == [100, 90, 100, 120]


def test_the_ratings_file_itself_is_a_path(tmp_path):
    folder = dat_edition(tmp_path / "log")
    assert movielens.read(folder / "ratings.dat", 3).fingerprint() == movielens.read(folder, 3).fingerprint()


def test_half_stars_follow_the_threshold(tmp_path):
    folder = csv_edition(tmp_path / "log", ["1,10,3.5,1", "1,20,4.0,2"])
    assert movielens.read(folder, 3).label.tolist() == [1, 1]
    assert movielens.read(folder, 3.5).label.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("1,20,5", r"ratings\.csv line 3: 3 cells, expected the 4"),
        ("1,20,five,3", r"ratings\.csv line 3: rating is 'five', not a number"),
        ("1,20,5,yesterday", r"ratings\.csv line 3: timestamp is 'yesterday', not a whole number"),
        ("1,20,,3", r"ratings\.csv line 3: rating is '', not a number"),
        ("1,99,5,3", r"ratings\.csv line 3: item 99 is not in movies\.csv; add its title"),
        ("1,20,5.5,3", r"ratings\.csv line 3: rating 5\.5 is outside 0\.5\.\.5"),
        ("1,20,nan,3", r"ratings\.csv line 3: rating nan is outside"),
    ],
)
def test_a_bad_row_is_named(row, says, tmp_path):
    folder = csv_edition(tmp_path / "log", ["1,10,4,1", row, "1,30,4,9"])
    with pytest.raises(LsatError, match=says):
        movielens.read(folder, 3)


def test_line_numbers_count_empty_lines(tmp_path):
    folder = csv_edition(tmp_path / "log", ["1,10,4,1", "", "", "1,20,9,2"])
    with pytest.raises(LsatError, match=r"line 5: rating 9 "):
        movielens.read(folder, 3)


@pytest.mark.parametrize("edition", [dat_edition, small_edition])
def test_a_bad_row_without_header_is_named(edition, tmp_path):
    folder = edition(tmp_path / "log")
    ratings = next(p for p in folder.iterdir() if p.name in ("ratings.dat", "u.data"))
    separator = "::" if ratings.suffix == ".dat" else "\t"
    ratings.write_text(ratings.read_text() + separator.join(["1", "x", "5", "7"]) + "\n")
    with pytest.raises(LsatError, match=r"line 5: item is 'x', not a whole number"):
        movielens.read(folder, 3)


def test_missing_column_and_files_are_named(tmp_path):
    folder = csv_edition(tmp_path / "log")
    text = (folder / "ratings.csv").read_text()
    (folder / "ratings.csv").write_text(text.replace("timestamp", "when"))
    with pytest.raises(LsatError, match=r"ratings\.csv line 1: column `timestamp` is missing"):
        movielens.read(folder, 3)
    (folder / "ratings.csv").write_text(text)
    (folder / "movies.csv").unlink()
    with pytest.raises(LsatError, match=r"movies\.csv: no such file; it holds the titles"):
        movielens.read(folder, 3)
    (folder / "ratings.csv").unlink()
    with pytest.raises(LsatError, match=r"none of ratings\.csv, ratings\.dat, u\.data"):
        movielens.read(folder, 3)
    with pytest.raises(LsatError, match="no such file"):
        movielens.read(tmp_path / "nowhere", 3)


def test_a_log_without_rows_is_an_error(tmp_path):
    with pytest.raises(LsatError, match="empty"):
        movielens.read(csv_edition(tmp_path / "log", []), 3)


def test_an_unset_variable_in_the_path_is_named(monkeypatch):
    monkeypatch.delenv("NO_SUCH_LOG", raising=False)
    with pytest.raises(LsatError, match="NO_SUCH_LOG"):
        load(DataConfig(format="movielens", path="$NO_SUCH_LOG"))


@pytest.mark.data
@pytest.mark.skipif("LSAT_RAY_DATA" not in os.environ, reason="LSAT_RAY_DATA does not point at real logs")
def test_facts_of_latest_small():
    data = DataConfig(format="movielens", path="$LSAT_RAY_DATA/ml-latest-small", positive_above=3.5)
    log = load(data)
    assert (len(log), len(log.user_ids), len(log.item_ids)) == (100_004, 671, 9_066)
    assert log.label.mean() == pytest.approx(0.51566, abs=5e-6)
    days = log.timestamp[[np.argmin(log.timestamp), np.argmax(log.timestamp)]].astype("datetime64[s]").astype(str)
    assert [d[:10] for d in days] == ["1995-01-09", "2016-10-16"]
    samples = windows(log)
    assert len(samples) == 93_294
    assert samples.label.mean() == pytest.approx(0.51531, abs=5e-6)
