"""Amazon Reviews 2018: 5-core reviews and item metadata as JSON lines, plain or gzipped (methods.md 0.3)."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.json

from lsat_ray.config import AmazonConfig
from lsat_ray.data import tables
from lsat_ray.data.interactions import Interactions
from lsat_ray.errors import LsatError

LOWEST, HIGHEST = 1.0, 5.0
"""Stars that Amazon gives."""
BLOCK = 1 << 26
"""Bytes that are parsed at once; a line may not be longer."""
REVIEWS = pa.schema(
    [("reviewerID", pa.string()), ("asin", pa.string()), ("overall", pa.float64()), ("unixReviewTime", pa.int64())]
)
META = pa.schema([("asin", pa.string()), ("title", pa.string())])


def read(path: Path, metadata: Path | None, positive_above: float, filters: AmazonConfig) -> Interactions:
    """Read reviews and titles, filtered in the order of the LSAT code: titled rows, users, a sample of them, titles.

    Rows without a title, user, rating or time are dropped, as the protocol does; of an item that the metadata name
    twice the first title counts. Sampling is pandas `sample(n, random_state=0)`, users in order of first appearance.

    Args:
        path: `Books_5.json[.gz]`, or a folder with it and `meta_Books.json[.gz]`.
        metadata: the meta file; None looks beside the reviews.
        positive_above: a rating above this is a like.
        filters: thresholds; all of them at 1 keep everything.

    Raises:
        LsatError: naming file, line or key and the remedy.
    """
    reviews_file = _find(path, "*_5.json*", "the 5-core reviews")
    meta_file = _find(metadata or reviews_file.parent, "meta_*.json*", "the titles (data.metadata)")
    reviews = _read_json(reviews_file, REVIEWS)
    rating = reviews["overall"].to_numpy(zero_copy_only=False)
    wrong = (rating < LOWEST) | (rating > HIGHEST)  # NaN where missing: dropped below
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise LsatError(
            f"{reviews_file} row {row + 1}: overall {rating[row]:g} is outside {LOWEST:g}..{HIGHEST:g}; mend or drop it"
        )
    meta = _read_json(meta_file, META).to_pandas().dropna()
    titles = meta[meta["title"] != ""].drop_duplicates("asin").set_index("asin")["title"]
    frame = _filtered(reviews.to_pandas(), titles, filters)
    if frame.empty:
        raise LsatError(
            f"{reviews_file}: no review is left after the join with {meta_file.name} and the filters of data.amazon; "
            "check that the two files belong together, or lower the thresholds"
        )
    user, user_ids = pd.factorize(frame["reviewerID"])
    item, item_ids = pd.factorize(frame["asin"])
    return Interactions(
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        label=(frame["overall"].to_numpy() > positive_above).astype(np.uint8),
        timestamp=frame["unixReviewTime"].to_numpy().astype(np.int64),
        user_ids=np.array(user_ids.tolist()),
        item_ids=np.array(item_ids.tolist()),
        titles=tuple(titles.loc[item_ids].tolist()),
        rating=frame["overall"].to_numpy(),
        dropped=len(reviews) - len(frame),
    )


def _filtered(frame: pd.DataFrame, titles: pd.Series, filters: AmazonConfig) -> pd.DataFrame:
    """Apply methods.md 0.3, steps 1 to 3; the user filter is not applied again after the title filter."""
    frame = frame.assign(title=frame["asin"].map(titles)).dropna()
    events = frame["reviewerID"].value_counts(sort=False)
    users = events.index[events >= filters.min_user_events].to_series()
    if filters.sample_users < 1:
        users = users.sample(int(len(users) * filters.sample_users), random_state=0)
    frame = frame[frame["reviewerID"].isin(users)]
    count = frame["title"].map(frame["title"].value_counts())
    return frame[count >= filters.min_title_events]


def _find(path: Path, pattern: str, what: str) -> Path:
    """Return the file itself, or the one in the folder that fits the pattern."""
    if not path.is_dir():
        return tables.existing(path, f"give the file with {what}")
    found = [p for p in sorted(path.glob(pattern)) if p.name.endswith((".json", ".json.gz"))]
    if len(found) != 1:
        raise LsatError(f"{path}: {len(found)} files like {pattern} in this folder; name the one with {what}")
    return tables.existing(found[0], f"download {what} again")


def _read_json(path: Path, schema: pa.Schema) -> pa.Table:
    """Read the columns of a schema from JSON lines; cells that are not there are null."""
    try:
        with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as stream:
            table = pa.json.read_json(
                stream,
                read_options=pa.json.ReadOptions(block_size=BLOCK),
                parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
        table.validate(full=True)  # the reader takes bytes that are no UTF-8
        return table
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise LsatError(_culprit(path, schema, error)) from error


def _culprit(path: Path, schema: pa.Schema, error: Exception) -> str:
    """Say which line is not an object with the schema's types."""
    kinds: dict[str, Any] = {"string": str, "double": (int, float), "int64": int}
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                try:
                    record = json.loads(raw)
                except ValueError:
                    return f"{path} line {number}: not a JSON object; mend or drop the line"
                if not isinstance(record, dict):
                    return f"{path} line {number}: not a JSON object; mend or drop the line"
                for field in schema:
                    value = record.get(field.name)
                    if value is not None and not isinstance(value, kinds[str(field.type)]):
                        return f"{path} line {number}: {field.name} is {value!r}, expected {field.type}; mend the line"
    except (OSError, EOFError) as broken:
        return f"{path} after line {number}: {broken}; the file is not whole, download it again"
    return f"{path}: not readable as JSON lines ({' '.join(str(error).split())}); download it again"
