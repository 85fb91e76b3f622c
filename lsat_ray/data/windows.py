"""From interactions to samples: (user, last 10 items with their labels, target, label, timestamp)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lsat_ray.data.interactions import Interactions
from lsat_ray.errors import LsatError


@dataclass(frozen=True)
class Samples:
    """Columnar samples, sorted by the target's timestamp (ties: file order, methods.md 0.2).

    `row` names a sample in every file: scores, ensembles and audits are aligned by it.
    """

    row: np.ndarray
    """int64 [N], position in the whole stream of samples."""
    user: np.ndarray
    """int32 [N]."""
    item: np.ndarray
    """int32 [N], the target."""
    label: np.ndarray
    """uint8 [N], 1 for a like."""
    timestamp: np.ndarray
    """int64 [N], Unix seconds of the target."""
    history_item: np.ndarray
    """int32 [N, H], oldest first."""
    history_label: np.ndarray
    """uint8 [N, H]."""
    history_timestamp: np.ndarray
    """int64 [N, H], Unix seconds."""
    probability: np.ndarray | None = None
    """float64 [N], true P(like) (synthetic stream only)."""
    oracles: np.ndarray | None = None
    """float64 [N, 3], columns `interactions.ORACLES` (synthetic stream only)."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, index: np.ndarray | slice) -> Samples:
        """Return the samples at `index` (positions, mask or slice)."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        taken: dict[str, Any] = {k: None if v is None else v[index] for k, v in columns.items()}
        return Samples(**taken)


def concatenate(parts: list[Samples]) -> Samples:
    """Return the parts as one table, in the order given."""
    if not parts:
        raise LsatError("samples: nothing to concatenate")
    names = [f.name for f in fields(Samples)]
    columns: dict[str, list[Any]] = {n: [getattr(p, n) for p in parts] for n in names}
    joined: dict[str, Any] = {n: None if any(c is None for c in v) else np.concatenate(v) for n, v in columns.items()}
    return Samples(**joined)


def windows(log: Interactions, history: int = 10, ties: str = "file-order") -> Samples:
    """Make one sample of every interaction that has `history` earlier ones of its user (methods.md 0.2, steps 1-3).

    Args:
        log: interactions in file order.
        history: H, length of the history.
        ties: `file-order` lets a history hold events of the target's own second, in file order, as the paper's code
            does; `exclude` admits only events before the target's timestamp.

    Raises:
        LsatError: when no user has enough interactions.
    """
    order = np.lexsort((log.timestamp, log.user))  # stable: ties keep the file's order
    user, stamp = log.user[order], log.timestamp[order]
    position = np.arange(len(order))
    new_user = np.r_[True, user[1:] != user[:-1]]
    start = np.maximum.accumulate(np.where(new_user, position, 0))  # first event of the target's user
    if ties == "exclude":
        new_group = new_user | np.r_[True, stamp[1:] != stamp[:-1]]
        last = np.maximum.accumulate(np.where(new_group, position, 0))  # first event of the target's second
    else:
        last = position
    keep = np.flatnonzero(last - start >= history)
    if len(keep) == 0:
        raise LsatError(
            f"samples: no user has more than {history} interactions; lower data.history or give a longer log"
        )
    keep = keep[np.lexsort((order[keep], stamp[keep]))]
    target, oldest = order[keep], last[keep] - history

    def histories(column: np.ndarray) -> np.ndarray:
        return sliding_window_view(column[order], history)[oldest]  # whole rows at once: no [N, H] index

    return Samples(
        row=np.arange(len(keep), dtype=np.int64),
        user=log.user[target].astype(np.int32),
        item=log.item[target].astype(np.int32),
        label=log.label[target].astype(np.uint8),
        timestamp=log.timestamp[target].astype(np.int64),
        history_item=histories(log.item.astype(np.int32)),
        history_label=histories(log.label.astype(np.uint8)),
        history_timestamp=histories(log.timestamp.astype(np.int64)),
        probability=None if log.probability is None else log.probability[target],
        oracles=None if log.oracles is None else log.oracles[target],
    )
