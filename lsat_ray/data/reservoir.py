"""A uniform sample of fixed size of the samples seen so far (Vitter's algorithm R; Diaz-Aviles 2012)."""

from __future__ import annotations

import numpy as np

from lsat_ray.data.periods import Periods


def draw(arrivals: int, size: int, seed: int) -> np.ndarray:
    """Return which of the first `arrivals` events are in a reservoir of `size`, sorted int64.

    The k-th arrival enters with probability size / k and evicts a uniform victim. What happens to an arrival depends
    on the seed and k alone, so a longer stream continues the same reservoir.
    """
    slots = np.arange(min(arrivals, size), dtype=np.int64)
    k = np.arange(1, arrivals + 1)
    place = (np.random.default_rng([seed, 11]).random(arrivals) * k).astype(np.int64)
    for arrival in np.flatnonzero((place < size) & (k > size)):
        slots[place[arrival]] = arrival
    return np.sort(slots)


def reservoir(periods: Periods, up_to: int, size: int, seed: int) -> np.ndarray:
    """Return positions in `periods.samples` of a uniform sample of T_1..T_up_to, sorted int64.

    Args:
        periods: the cut stream.
        up_to: last period whose training rows have passed; 0 for none.
        size: rows of the reservoir; fewer come back while fewer have passed.
        seed: of the draws.
    """
    passed = np.concatenate([np.empty(0, np.int64), *(periods.positions(t, "train") for t in range(1, up_to + 1))])
    return passed[draw(len(passed), size, seed)]
