"""What a user would try before any model: the share of likes in the history, the item's like rate, their sum.

All are prequential: the score of a sample uses earlier samples only.

    like-share(n)            = likes in n's history / H
    item-rate(n)             = (likes_i + 1 + 3 b) / (count_i + 2 + 3)
    like-share+item-rate(n)  = the sum of the two
    item-rate@period(n)      = item-rate, counted up to the start of n's period: as fresh as the models

where likes_i and count_i are over the earlier samples with n's item as the target (one like in two observations, then
three more at the base rate), and b is the like rate of the samples before the first period. The history is part of the
sample, as fresh for every row of the table.
"""

from __future__ import annotations

import numpy as np

from lsat_ray.baselines.features import before, snapshots
from lsat_ray.data.interactions import ORACLES
from lsat_ray.data.periods import Periods
from lsat_ray.data.windows import Samples
from lsat_ray.errors import LsatError

LIKE_SHARE = "like-share"
ITEM_RATE = "item-rate"
SUM = "like-share+item-rate"
PERIOD_RATE = "item-rate@period"
ORACLE = "oracle"
NAMES = (LIKE_SHARE, ITEM_RATE, SUM)
"""Rows of the results table that `naive_scores` gives, in this order."""

BASE_WEIGHT = 3.0
"""Samples at the base rate that every item starts with."""


def naive_scores(samples: Samples, warmup: int) -> dict[str, np.ndarray]:
    """Score the whole ordered table of samples.

    Args:
        samples: all samples of the stream [N], in order.
        warmup: rows before the first period (`Periods.borders[0]`); the base rate is theirs (0.5 without any).

    Returns:
        Name -> float64 [N].

    Raises:
        LsatError: when `warmup` is not a number of rows.
    """
    if not 0 <= warmup <= len(samples):
        raise LsatError(f"naive: a warm-up of {warmup} rows is not within the {len(samples)} samples; pass borders[0]")
    share = samples.history_label.mean(axis=1, dtype=np.float64)
    rate = _item_rate(samples, warmup, np.arange(len(samples)))
    return {LIKE_SHARE: share, ITEM_RATE: rate, SUM: share + rate}


def item_rate_by_period(periods: Periods, as_of: int | None = None) -> np.ndarray:
    """Return the row `item-rate@period` for every sample of the stream, float64 [N].

    Args:
        as_of: last period that is counted, for a row that is left to age; None: the one before the sample's.
    """
    return _item_rate(periods.samples, periods.borders[0], snapshots(periods, as_of or periods.count))


def oracle_scores(samples: Samples) -> dict[str, np.ndarray]:
    """Return what the oracles of a synthetic stream say, name -> float64 [N]; empty for a real log.

    No score has a better AUC in expectation than `oracle`, the true P(like); the others (`interactions.ORACLES`) know
    half of it.
    """
    if samples.probability is None or samples.oracles is None:
        return {}
    return {ORACLE: samples.probability, **dict(zip(ORACLES, samples.oracles.T, strict=True))}


def _item_rate(samples: Samples, warmup: int, until: np.ndarray) -> np.ndarray:
    """Return the smoothed like rate of every row's item over the rows before `until` [N]."""
    label = samples.label.astype(np.float64)
    rows = np.minimum(until, warmup)
    base = np.where(rows > 0, np.r_[0.0, np.cumsum(label)][rows] / np.maximum(rows, 1), 0.5)
    likes, count = before(samples.item, label, until)
    return (likes + 1 + BASE_WEIGHT * base) / (count + 2 + BASE_WEIGHT)
