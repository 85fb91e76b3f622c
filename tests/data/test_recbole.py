"""RecBole's atomic files, read and written."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsat_ray.config import SyntheticConfig
from lsat_ray.data import recbole, synthetic
from lsat_ray.errors import LsatError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\na\tx\t4\t978300760.0\nb\ty\t3\t978300761\n"
ITEM = 'item_id:token\tmovie_title:token_seq\tclass:token_seq\ny\tNA\tDrama\nx\t"Quoted" title\tWar\n'


def folder_with(tmp_path: Path, inter: str = INTER, item: str = ITEM) -> Path:
    (tmp_path / "toy.inter").write_text(inter)
    (tmp_path / "toy.item").write_text(item)
    return tmp_path


def test_reads_atomic_files(tmp_path):
    log = recbole.read(folder_with(tmp_path), 3)
    assert log.user_ids[log.user].tolist() == ["a", "b"]
    assert [log.titles[i] for i in log.item] == ['"Quoted" title', "NA"]
    assert log.label.tolist() == [1, 0]
    assert log.timestamp.tolist() == [978300760, 978300761]


def test_what_is_written_is_read_back(tmp_path):
    log = synthetic.generate(SyntheticConfig(users=20, items=30, warmup=50), 100, 10)
    recbole.write(log, tmp_path / "new" / "folder", "toy")
    back = recbole.read(tmp_path / "new" / "folder" / "toy.inter", 3)
    for name in ("label", "timestamp"):
        assert (getattr(back, name) == getattr(log, name)).all()
    assert (back.user_ids[back.user] == log.user_ids[log.user]).all()
    assert [back.titles[i] for i in back.item] == [log.titles[i] for i in log.item]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("b\ty\t3", "b\ty\tmuch", r"toy\.inter line 3: rating:float is 'much', not a number"),
        ("b\ty\t3", "b\tz\t3", r"toy\.inter line 3: item z is not in toy\.item"),
        ("b\ty\t3\t978300761", "b\ty\t3", r"toy\.inter line 3: 3 cells, expected the 4"),
        ("b\ty\t3", "b\ty\tinf", r"toy\.inter line 3: rating inf"),
        ("978300761", "nan", r"toy\.inter line 3: timestamp nan"),
        ("timestamp:float", "when:float", r"toy\.inter line 1: field `timestamp` is missing"),
        ("rating:float", "stars:float", r"toy\.inter line 1: neither `rating:float` nor `label:float`"),
        ("rating:float", "rating", r"toy\.inter line 1: field `rating` has no RecBole type"),
        ("rating:float", "label:float", r"toy\.inter line 2: label 4 is not 0 or 1"),
    ],
)
def test_a_bad_row_or_field_is_named(old, new, says, tmp_path):
    with pytest.raises(LsatError, match=says):
        recbole.read(folder_with(tmp_path, INTER.replace(old, new)), 3)


def test_missing_title_or_file_is_named(tmp_path):
    with pytest.raises(LsatError, match=r"toy\.item line 1: no title"):
        recbole.read(folder_with(tmp_path, item=ITEM.replace("movie_title", "words")), 3)
    (tmp_path / "toy.item").unlink()
    with pytest.raises(LsatError, match=r"toy\.item: no such file"):
        recbole.read(tmp_path, 3)
    (tmp_path / "toy.inter").unlink()
    with pytest.raises(LsatError, match=r"0 \.inter files"):
        recbole.read(tmp_path, 3)
