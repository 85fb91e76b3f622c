"""Warm and cold items: was the item seen by whatever the model was built from? (methods.md 2, Fig. 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lsat_ray.data.periods import Periods
from lsat_ray.errors import LsatError


def seen_items(periods: Periods, seen: Iterable[int], *, warmup: int) -> np.ndarray:
    """Return the sorted distinct target items of the periods `seen` and of the warm-up.

    An item that only stood in a history does not count, as in the paper's code.

    Args:
        periods: the stream.
        seen: periods that the models of the table have learnt from.
        warmup: how many of the newest samples before D_1 the backbone or a rival was built from; the most over all
            rows of a table, so that a cold item is cold for each of them. 0: none, `periods.borders[0]`: all.

    Raises:
        LsatError: when a period does not exist, or there are fewer samples before D_1.
    """
    first = periods.borders[0]
    if not 0 <= warmup <= first:
        raise LsatError(f"warm items: a warm-up of {warmup} samples, but {first} lie before the first period")
    items = [periods.samples.item[first - warmup : first]]
    items += [periods.rows(t).item for t in seen]
    return np.unique(np.concatenate(items))
