"""The one table that every reader returns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from lsat_ray.errors import LsatError

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
