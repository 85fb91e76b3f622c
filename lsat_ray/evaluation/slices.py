"""Slices of the users of a tested period that newer papers report apart: active, inactive, new, returning."""

from __future__ import annotations

import numpy as np

from lsat_ray.data.periods import Periods

NAMES = ("active", "inactive", "returning", "new")
"""Keys of `user_slices`."""


def samples_before(periods: Periods, tested: int) -> np.ndarray:
    """Return for each sample of D_tested how many samples its user has before the period, int64 [rows of D_tested].

    The warm-up counts; the tested period itself does not, because its model is published before it begins.
    """
    before = periods.samples.user[: periods.span(tested).start]
    users = periods.rows(tested).user
    counts = np.bincount(before, minlength=int(users.max()) + 1)
    return counts[users]


def user_slices(periods: Periods, tested: int) -> dict[str, np.ndarray]:
    """Return masks [rows of D_tested] by name, from what is known when the period begins.

    `new` users have no sample before the period, `returning` ones have. `active` users have more samples before it
    than the median user of the period, `inactive` ones do not; EvoRec (arXiv 2511.16414) reports these two apart.
    """
    counts = samples_before(periods, tested)
    _, first = np.unique(periods.rows(tested).user, return_index=True)
    active = counts > np.median(counts[first])
    return {"active": active, "inactive": ~active, "returning": counts > 0, "new": counts == 0}
