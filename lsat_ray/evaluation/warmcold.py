"""Warm and cold rows: has the item been seen before? (methods.md 2, Fig. 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from lsat_ray.data.periods import Part, Periods, Slice

Seen = Literal["target", "target+history"]


def seen_items(periods: Periods, seen: Iterable[int], by: Seen = "target") -> np.ndarray:
    """Return the sorted distinct items of the periods `seen`.

    `target` counts an item as seen when it was a target there, as the paper's code does; `target+history` also when it
    only stood in a history.
    """
    samples = periods.select([Slice(t, "all") for t in seen])
    if by == "target":
        return np.unique(samples.item)
    return np.union1d(samples.item, samples.history_item.ravel())


def warm(periods: Periods, tested: int, seen: Iterable[int], part: Part = "all", by: Seen = "target") -> np.ndarray:
    """Return a mask [rows of D_tested] that is true where the target item appears in one of the periods `seen`.

    Raises:
        LsatError: when a period does not exist, or `seen` is empty.
    """
    return np.isin(periods.rows(tested, part).item, seen_items(periods, seen, by))
