"""Amazon Reviews 2018: join, filters in the order of the protocol, errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lsat_ray.config import AmazonConfig, DataConfig
from lsat_ray.data import amazon, load
from lsat_ray.errors import LsatError

META = [
    {"asin": "A1", "title": "None", "price": "$3", "also_buy": ["A2"]},
    {"asin": "A2", "title": "Dune"},
    {"asin": "A3", "title": "Dune"},
    {"asin": "A2", "title": "Dune (again)"},
    {"asin": "A5", "title": ""},
]


def review(user: str, asin: str, stars: float, second: int) -> dict:
    return {
        "overall": stars,
        "verified": True,
        "reviewerID": user,
        "asin": asin,
        "style": {"Format:": " Hardcover"},
        "reviewText": 'a "quoted"\nline',
        "unixReviewTime": second,
    }


REVIEWS = [
    review("u", "A1", 5.0, 10),
    review("v", "A2", 4, 30),
    review("u", "A2", 3.0, 20),
    review("u", "A3", 1.0, 5),
    review("w", "A9", 5.0, 6),
    review("w", "A5", 5.0, 7),
]


def write(folder: Path, reviews: list | None = None, zipped: bool = False) -> Path:
    def dump(name: str, records: list) -> None:
        text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records)
        data = text.encode()
        (folder / (name + (".gz" if zipped else ""))).write_bytes(gzip.compress(data) if zipped else data)

    dump("Books_5.json", REVIEWS if reviews is None else reviews)
    dump("meta_Books.json", META)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_and_joins(zipped, tmp_path):
    log = amazon.read(write(tmp_path, zipped=zipped), None, 3, AmazonConfig(min_user_events=1))
    assert log.user_ids[log.user].tolist() == ["u", "v", "u", "u"]  # untitled rows are gone
    assert log.dropped == 2
    assert log.item_ids[log.item].tolist() == ["A1", "A2", "A2", "A3"]
    assert [log.titles[i] for i in log.item] == ["None", "Dune", "Dune", "Dune"]
    assert log.label.tolist() == [1, 1, 0, 0]
    assert log.timestamp.tolist() == [10, 30, 20, 5]


def test_filters_by_user_then_by_title_of_any_asin(tmp_path):
    reviews = [*REVIEWS, review("v", "A1", 2.0, 40)]
    filters = AmazonConfig(min_user_events=3, min_title_events=2)
    log = amazon.read(write(tmp_path, reviews), None, 3, filters)
    assert log.item_ids[log.item].tolist() == ["A2", "A3"]  # v goes first, then `None`, which only one row is left of
    assert set(log.user_ids) == {"u"}  # who now has two events: the user filter is not applied again


def test_samples_users_as_pandas_does(tmp_path):
    reviews = [review(f"u{i}", "A2", 5.0, i) for i in range(50)]
    folder = write(tmp_path, reviews)
    config = DataConfig(
        format="amazon",
        path=str(folder / "Books_5.json"),
        metadata=str(folder / "meta_Books.json"),
        amazon=AmazonConfig(min_user_events=1, sample_users=0.21),
    )
    import pandas as pd

    log = load(config)
    expected = pd.Series([f"u{i}" for i in range(50)]).sample(10, random_state=0)
    assert set(log.user_ids) == set(expected)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"asin": "A1", ', r"Books_5\.json line 2: not a JSON object"),
        (json.dumps(review("u", "A1", 5, 1) | {"overall": "five"}), r"Books_5\.json line 2: overall is 'five'"),
        (json.dumps(review("u", "A1", 5, 1) | {"asin": 7}), r"Books_5\.json line 2: asin is 7, expected string"),
        (json.dumps(review("u", "A1", 6, 1)), r"Books_5\.json row 2: overall 6 is outside 1\.\.5"),
    ],
)
def test_a_bad_line_is_named(line, says, tmp_path):
    with pytest.raises(LsatError, match=says):
        amazon.read(write(tmp_path, [REVIEWS[0], line, REVIEWS[1]]), None, 3, AmazonConfig())


def test_files_that_do_not_fit_are_named(tmp_path):
    folder = write(tmp_path, zipped=True)
    whole = (folder / "Books_5.json.gz").read_bytes()
    (folder / "Books_5.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LsatError, match=r"Books_5\.json\.gz after line .*not whole"):
        amazon.read(folder, None, 3, AmazonConfig())
    (folder / "Books_5.json.gz").write_bytes(whole)
    with pytest.raises(LsatError, match="no review is left"):
        amazon.read(folder, None, 3, AmazonConfig(min_user_events=99))
    (folder / "meta_Books.json.gz").unlink()
    with pytest.raises(LsatError, match=r"0 files like meta_\*\.json\*.*titles"):
        amazon.read(folder, None, 3, AmazonConfig())
