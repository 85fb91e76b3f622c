"""Read delimited text into Arrow columns; a faulty row is searched for only after a read has failed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from lsat_ray.errors import LsatError

NUMBERS: dict[str, tuple[Callable[[str], object], str]] = {
    "int64": (int, "a whole number"),
    "double": (float, "a number"),
}
"""By Arrow type: the parser that finds a faulty cell, and the words for what was expected there."""


def existing(path: Path, remedy: str) -> Path:
    """Return the path of a file that is there and not empty."""
    if not path.is_file():
        raise LsatError(f"{path}: no such file; {remedy}")
    if path.stat().st_size == 0:
        raise LsatError(f"{path}: the file is empty; {remedy}")
    return path


def header_of(path: Path, separator: str) -> list[str]:
    """Return the cells of the first line."""
    with path.open("rb") as file:
        return decode(file.readline()).removeprefix("\ufeff").rstrip("\r\n").split(separator)


def read_delimited(
    path: Path, separator: str, columns: dict[str, pa.DataType], names: list[str] | None = None
) -> pa.Table:
    """Read some columns of a text table without quotes, in file order.

    Args:
        path: an existing file.
        separator: between cells; more than one character is allowed (`::`).
        columns: name -> Arrow type (`pa.int64()`, `pa.float64()`, `pa.string()`) of the wanted columns.
        names: all columns of a file without a header; None when the first line is one.

    Raises:
        LsatError: naming file and line of the first row that does not parse, or the missing column.
    """
    has_header = names is None
    names = header_of(path, separator) if names is None else names
    missing = [c for c in columns if c not in names]
    if missing:
        raise LsatError(
            f"{path} line 1: column `{missing[0]}` is missing among {names}; add it or rename the one meant"
        )
    source: str | io.BytesIO = str(path)
    if len(separator) > 1:
        source = io.BytesIO(path.read_bytes().replace(separator.encode(), b"\t"))
    try:
        return pa.csv.read_csv(
            source,
            read_options=pa.csv.ReadOptions(column_names=names, skip_rows=int(has_header), block_size=1 << 24),
            parse_options=pa.csv.ParseOptions(delimiter=separator if len(separator) == 1 else "\t", quote_char=False),
            convert_options=pa.csv.ConvertOptions(
                column_types=columns, include_columns=list(columns), null_values=[], strings_can_be_null=False
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise LsatError(_culprit(path, separator, columns, names, has_header, str(error))) from error


def require(path: Path, good: np.ndarray, say: Callable[[int], str], header: bool) -> None:
    """Raise for the first row that is not `good` [N], with its line number; `say(row)` gives the rest."""
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise LsatError(f"{path} line {_line_of(path, row, header)}: {say(row)}")


def dense(column: pa.ChunkedArray) -> tuple[np.ndarray, list]:
    """Return int32 codes [N] in order of first appearance, and the distinct values."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    return encoded.indices.to_numpy().astype(np.int32), encoded.dictionary.to_pylist()


def titles_for(path: Path, item: np.ndarray, keys: list, titles: dict, source: Path, header: bool) -> tuple[str, ...]:
    """Return the title of every distinct item.

    Raises:
        LsatError: naming the first row of the log whose item has no title.
    """
    unknown = np.array([k not in titles for k in keys], dtype=bool)
    require(
        path,
        ~unknown[item],
        lambda row: f"item {keys[item[row]]} is not in {source.name}; add its title there or drop the row",
        header,
    )
    return tuple(titles[k] for k in keys)


def decode(text: bytes) -> str:
    """Decode UTF-8, or ISO-8859-1 where it is not (MovieLens 100K and 1M)."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("iso-8859-1")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without its end) of every line that is not empty."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            text = decode(raw).rstrip("\r\n")
            if text:
                yield number, text


def _line_of(path: Path, row: int, header: bool) -> int:
    for position, (number, _) in enumerate(lines(path)):
        if position == row + int(header):
            return number
    return row + 1 + int(header)


def _culprit(
    path: Path, separator: str, columns: dict[str, pa.DataType], names: list[str], has_header: bool, error: str
) -> str:
    """Say what is wrong with the first row that does not parse."""
    numeric = {names.index(c): (c, *NUMBERS[str(t)]) for c, t in columns.items() if str(t) in NUMBERS}
    for position, (number, text) in enumerate(lines(path)):
        if has_header and position == 0:
            continue
        cells = text.split(separator)
        if len(cells) != len(names):
            return (
                f"{path} line {number}: {len(cells)} cells, expected the {len(names)} of {names}; mend or drop the row"
            )
        for place, (column, parse, kind) in numeric.items():
            try:
                parse(cells[place])
            except ValueError:
                return f"{path} line {number}: {column} is {cells[place]!r}, not {kind}; mend or drop the row"
    return f"{path}: not a readable table ({' '.join(error.split())}); download it again"
