"""The one table that every reader returns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from lsat_ray.errors import LsatError
from lsat_ray.files import write_atomic

ORACLES = ("oracle-long", "oracle-short", "oracle-mixture")
"""Columns of `oracles`: the expected P(like) of one who knows only what is stable, of one who knows only the trend and
the interest of now, and the best mixture of these two."""


@dataclass(frozen=True)
class Interactions:
    """Timestamped feedback in the order of the file, ids made dense.

    Row arrays have shape [N]; `user` and `item` index `user_ids` and `item_ids` / `titles`.
    """

    user: np.ndarray
    """int32 [N], index into `user_ids`."""
    item: np.ndarray
    """int32 [N], index into `item_ids` and `titles`."""
    label: np.ndarray
    """uint8 [N], 1 for a like."""
    timestamp: np.ndarray
    """int64 [N], Unix seconds."""
    user_ids: np.ndarray
    """str [U], the log's own user ids."""
    item_ids: np.ndarray
    """str [I], the log's own item ids."""
    titles: tuple[str, ...]
    """[I], untrusted text."""
    probability: np.ndarray | None = None
    """float64 [N], true P(like), known for the synthetic stream only."""
    oracles: np.ndarray | None = None
    """float64 [N, 3], what the partial oracles `ORACLES` say (synthetic stream only)."""
    rating: np.ndarray | None = None
    """float64 [N], what the label was made from; None where the log holds labels alone."""
    dropped: int = 0
    """Rows of the file that the reader left out (no title, filtered away)."""
    duplicates: int = 0
    """Rows that repeat an earlier one (same user, item, rating and second), left out or kept (`data.duplicates`)."""

    def __post_init__(self) -> None:
        n = len(self.user)
        for name in ("item", "label", "timestamp"):
            if len(getattr(self, name)) != n:
                raise LsatError(f"interactions: column {name} has {len(getattr(self, name))} rows, user has {n}")
        if n == 0:
            raise LsatError("interactions: the log is empty; check data.path and its filters")
        if len(self.titles) != len(self.item_ids):
            raise LsatError(f"interactions: {len(self.item_ids)} items but {len(self.titles)} titles")
        for name, ids in (("user", self.user_ids), ("item", self.item_ids)):
            column = getattr(self, name)
            if column.min() < 0 or column.max() >= len(ids):
                row = int(np.flatnonzero((column < 0) | (column >= len(ids)))[0])
                raise LsatError(f"interactions: row {row}: {name} {column[row]} is not among the {len(ids)} known ones")
        if not np.isin(self.label, (0, 1)).all():
            row = int(np.flatnonzero(~np.isin(self.label, (0, 1)))[0])
            raise LsatError(f"interactions: row {row}: label {self.label[row]} is neither 0 nor 1")

    def __len__(self) -> int:
        return len(self.user)

    def fingerprint(self) -> str:
        """Return the SHA-256 of everything that a model may see."""
        digest = hashlib.sha256()
        for column in (self.user, self.item, self.label, self.timestamp):
            digest.update(np.ascontiguousarray(column).tobytes())
        for text in (*self.user_ids.tolist(), *self.item_ids.tolist(), *self.titles):
            digest.update(str(text).encode() + b"\0")
        return digest.hexdigest()


def deduplicate(log: Interactions, policy: Literal["drop", "keep", "refuse"]) -> Interactions:
    """Count the exact duplicates of a log, and drop, keep or refuse them.

    A repeated row puts a target into its own history, label included.

    Args:
        log: as it was read.
        policy: `drop` keeps the first of equal rows; `keep` counts them only; `refuse` raises.

    Returns:
        The log with `duplicates` set.

    Raises:
        LsatError: under `refuse`, naming the first duplicate.
    """
    rating = log.label if log.rating is None else log.rating
    frame = pd.DataFrame({"user": log.user, "item": log.item, "rating": rating, "second": log.timestamp})
    repeated = frame.duplicated().to_numpy()
    count = int(repeated.sum())
    if count and policy == "refuse":
        row = int(np.flatnonzero(repeated)[0])
        user, item = log.user_ids[log.user[row]], log.item_ids[log.item[row]]
        raise LsatError(
            f"data.duplicates: {count} of {len(log)} rows repeat an earlier one (the first: user {user}, item {item}, "
            f"second {log.timestamp[row]}); clean the log, or set it to drop"
        )
    if not count or policy == "keep":
        return replace(log, duplicates=count)
    names = [f.name for f in fields(log) if f.name not in ("user_ids", "item_ids")]
    columns: dict[str, Any] = {n: value for n in names if isinstance(value := getattr(log, n), np.ndarray)}
    return replace(log, duplicates=count, **{n: value[~repeated] for n, value in columns.items()})


def write_ids(log: Interactions, folder: Path) -> None:
    """Write which of the log's own ids each dense id stands for: `ids/users.parquet` and `ids/items.parquet`.

    Columns are `user`, `id` and `item`, `id`, `title`; `user` and `item` are the dense ids of every file of scores.

    Args:
        log: the log that was cut.
        folder: the run folder.
    """
    users = pd.DataFrame({"user": np.arange(len(log.user_ids), dtype=np.int32), "id": log.user_ids.astype(str)})
    items = pd.DataFrame({"item": np.arange(len(log.item_ids), dtype=np.int32), "id": log.item_ids.astype(str)})
    write_atomic(folder / "ids" / "users.parquet", users)
    write_atomic(folder / "ids" / "items.parquet", items.assign(title=list(log.titles)))
