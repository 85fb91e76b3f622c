"""MovieLens in all its layouts: 100K (`u.data`), 1M and 10M (`::`), and the CSV editions (latest, 20M, 25M, 32M)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from lsat_ray.data import tables
from lsat_ray.data.interactions import Interactions
from lsat_ray.errors import LsatError

LOWEST, HIGHEST = 0.5, 5.0
"""Stars that MovieLens gives."""


@dataclass(frozen=True)
class Layout:
    """How one edition writes its log."""

    ratings: str
    """File of the ratings."""
    movies: str
    """File of the titles."""
    separator: str
    """Between the cells of a rating."""
    columns: tuple[str, str, str, str]
    """User, item, rating, timestamp, as the header spells them."""
    header: bool
    """Whether the ratings have a header."""
    titles: Callable[[Path], dict[int, str]]
    """Reader of the titles file."""


def _split_titles(separator: str) -> Callable[[Path], dict[int, str]]:
    def read(path: Path) -> dict[int, str]:
        titles: dict[int, str] = {}
        for number, text in tables.lines(path):
            cells = text.split(separator)
            if len(cells) < 2:
                raise LsatError(
                    f"{path} line {number}: expected `id{separator}title`, found {text[:60]!r}; mend the row"
                )
            titles[_item_id(path, number, cells[0])] = cells[1]
        return titles

    return read


def _csv_titles(path: Path) -> dict[int, str]:
    titles: dict[int, str] = {}
    reader = csv.reader(io.StringIO(tables.decode(path.read_bytes()).removeprefix("\ufeff"), newline=""))
    header = next(reader, [])
    for column in ("movieId", "title"):
        if column not in header:
            raise LsatError(
                f"{path} line 1: column `{column}` is missing among {header}; add it or rename the one meant"
            )
    place, title = header.index("movieId"), header.index("title")
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(header):
            raise LsatError(
                f"{path} line {reader.line_num}: {len(cells)} cells, expected {len(header)}; mend or drop the row"
            )
        titles[_item_id(path, reader.line_num, cells[place])] = cells[title]
    return titles


def _item_id(path: Path, number: int, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise LsatError(f"{path} line {number}: the item id is {text!r}, not a number; mend or drop the row") from error


_PLAIN = ("user", "item", "rating", "timestamp")
LAYOUTS = (
    Layout("ratings.csv", "movies.csv", ",", ("userId", "movieId", "rating", "timestamp"), True, _csv_titles),
    Layout("ratings.dat", "movies.dat", "::", _PLAIN, False, _split_titles("::")),
    Layout("u.data", "u.item", "\t", _PLAIN, False, _split_titles("|")),
)


def read(path: Path, positive_above: float) -> Interactions:
    """Read a MovieLens folder, or the ratings file in one; the layout is known by the files' names.

    Titles stay as they are written, in UTF-8 or ISO-8859-1; only rated movies become items.

    Args:
        path: folder or ratings file.
        positive_above: a rating above this is a like.

    Raises:
        LsatError: naming file, line and remedy: a broken row, an unknown item, a rating outside 0.5..5, a missing file.
    """
    layout, ratings = _layout(path)
    movies = tables.existing(ratings.parent / layout.movies, "it holds the titles; put it beside the ratings")
    user_column, item_column, rating_column, time_column = layout.columns
    types = dict(zip(layout.columns, (pa.int64(), pa.int64(), pa.float64(), pa.int64()), strict=True))
    table = tables.read_delimited(ratings, layout.separator, types, None if layout.header else list(layout.columns))
    rating = table[rating_column].to_numpy()
    tables.require(
        ratings,
        (rating >= LOWEST) & (rating <= HIGHEST),
        lambda row: f"rating {rating[row]:g} is outside {LOWEST:g}..{HIGHEST:g}; mend or drop the row",
        layout.header,
    )
    user, user_ids = tables.dense(table[user_column])
    item, item_ids = tables.dense(table[item_column])
    return Interactions(
        user=user,
        item=item,
        label=(rating > positive_above).astype(np.uint8),
        timestamp=table[time_column].to_numpy(),
        user_ids=np.array([str(u) for u in user_ids]),
        item_ids=np.array([str(i) for i in item_ids]),
        titles=tables.titles_for(ratings, item, item_ids, layout.titles(movies), movies, layout.header),
        rating=rating,
    )


def _layout(path: Path) -> tuple[Layout, Path]:
    """Return the layout and the ratings file."""
    names = ", ".join(layout.ratings for layout in LAYOUTS)
    if path.is_dir():
        for layout in LAYOUTS:
            if (path / layout.ratings).exists():
                return layout, tables.existing(path / layout.ratings, "download the log again")
        raise LsatError(f"data.path: {path}: none of {names} is in this folder; give the unpacked MovieLens folder")
    tables.existing(path, "give the unpacked MovieLens folder as data.path")
    for layout in LAYOUTS:
        if path.name == layout.ratings:
            return layout, path
    raise LsatError(f"data.path: {path}: not a MovieLens ratings file ({names}); keep the original names")
