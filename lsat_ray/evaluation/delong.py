"""The interval of one AUC in O(n log n), with the samples of a user counted as dependent.

Sources: DeLong, DeLong and Clarke-Pearson (Biometrics 1988) for the variance; Sun and Xu (IEEE Signal Processing
Letters 2014) for its computation from midranks; Obuchowski (Biometrics 1997) for clustered data.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # Student's quantile, without the second that scipy.stats takes to import

from lsat_ray.errors import LsatError


class Interval(NamedTuple):
    """An AUC and its confidence interval."""

    auc: float
    low: float
    high: float


def midranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value from 1, float64 [N]; those that are equal share the mean of their ranks."""
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(size) - (size - 1) / 2)[group]


def placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the structural components of an AUC (DeLong eq. 4 and 5).

    Args:
        labels: [N], 1 for a positive.
        scores: [N].

    Returns:
        `v10` [positives], the share of negatives that each positive outranks (ties count one half), and `v01`
        [negatives], the share of positives that outrank each negative. The mean of either is the AUC.

    Raises:
        LsatError: when shapes differ, a score is not finite or a class is missing.
    """
    truth, values = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or values.shape != truth.shape:
        raise LsatError(f"delong: scores {values.shape} for labels {truth.shape}; give one score per label")
    if not np.isfinite(values).all():
        raise LsatError("delong: a score is not finite; every sample that is compared needs a score")
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if positives == 0 or negatives == 0:
        raise LsatError(f"delong: {positives} positives and {negatives} negatives; AUC needs both")
    # A midrank among all samples minus the midrank within the own class counts the samples of the other class below.
    everywhere = midranks(values)
    v10 = (everywhere[truth] - midranks(values[truth])) / negatives
    v01 = 1.0 - (everywhere[~truth] - midranks(values[~truth])) / positives
    return v10, v01


def variance(labels: np.ndarray, scores: np.ndarray, users: np.ndarray | None = None) -> tuple[float, float, int]:
    """Return an AUC, its variance and the degrees of freedom of that (Obuchowski 1997, eq. for S10, S01 and S11).

    Args:
        labels: [N], 1 for a positive.
        scores: [N].
        users: [N], whose samples depend on each other; None takes every sample for independent, which is DeLong's.

    Returns:
        the variance is NaN and the degrees of freedom are 0 when the samples of a class are all of one user.

    Raises:
        LsatError: see `placements`; also when there is not one user per label.
    """
    truth = np.asarray(labels).astype(bool)
    v10, v01 = placements(truth, scores)
    auc = float(v10.mean())
    if users is not None and np.shape(users) != truth.shape:
        raise LsatError(f"delong: users {np.shape(users)} for labels {truth.shape}; give one user per label")
    names, user = np.unique(np.arange(len(truth)) if users is None else users, return_inverse=True)
    parts, groups = [], []
    for side, placed in ((truth, v10), (~truth, v01)):
        mine = np.bincount(user[side], minlength=len(names))
        excess = np.bincount(user[side], placed, minlength=len(names)) - mine * auc
        parts.append(excess / side.sum())
        groups.append(int((mine > 0).sum()))
    if min(groups) < 2:
        return auc, float("nan"), 0
    (ten, one), (i10, i01), i = parts, groups, len(names)
    spread = i10 / (i10 - 1) * (ten @ ten) + i01 / (i01 - 1) * (one @ one) + 2 * i / (i - 1) * (ten @ one)
    return auc, float(spread), min(groups) - 1


def interval(labels: np.ndarray, scores: np.ndarray, users: np.ndarray | None = None, level: float = 0.95) -> Interval:
    """Return the AUC of one classifier with its interval by Student's t, clipped to [0, 1].

    All three are NaN when a class is missing, the bounds alone when the samples of a class are all of one user.
    """
    truth = np.asarray(labels).astype(bool)
    if truth.all() or not truth.any():
        return Interval(np.nan, np.nan, np.nan)
    auc, spread, freedom = variance(truth, scores, users)
    if freedom == 0:
        return Interval(auc, np.nan, np.nan)
    half = float(stdtrit(freedom, 0.5 + level / 2) * np.sqrt(max(spread, 0.0)))
    return Interval(auc, max(0.0, auc - half), min(1.0, auc + half))
