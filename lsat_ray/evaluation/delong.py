"""DeLong's variance of the AUC in O(n log n), for one classifier, two correlated ones and their paired test.

Sources: DeLong, DeLong and Clarke-Pearson (Biometrics 1988) for the estimator; Sun and Xu (IEEE Signal Processing
Letters 2014) for its computation from midranks. Rows count as independent: where users contribute many rows each, the
bootstrap over users in `significance` is the safer statement.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import norm, rankdata

from lsat_ray.errors import LsatError


class Interval(NamedTuple):
    """An AUC and its confidence interval."""

    auc: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """The difference of two AUCs on the same rows."""

    difference: float
    """AUC of the first minus AUC of the second."""
    error: float
    """Standard error of the difference."""
    p: float
    """Two-sided p-value of the z-test."""


def placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the structural components of K classifiers (DeLong eq. 4 and 5).

    Args:
        labels: [N], 1 for a positive.
        scores: [K, N].

    Returns:
        `v10` [K, positives], the share of negatives that each positive outranks (ties count one half), and
        `v01` [K, negatives], the share of positives that outrank each negative. The mean of either is the AUC.

    Raises:
        LsatError: when shapes differ, a score is not finite or a class is missing.
    """
    truth = np.asarray(labels).astype(bool)
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if truth.ndim != 1 or table.shape[1] != len(truth):
        raise LsatError(f"delong: {table.shape[1]} scores for {truth.shape} labels; give one score a label")
    if not np.isfinite(table).all():
        raise LsatError("delong: a score is not finite; drop or mend the rows before they are compared")
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if positives == 0 or negatives == 0:
        raise LsatError(f"delong: {positives} positives and {negatives} negatives; AUC needs both")
    # A midrank among all rows minus the midrank within the own class counts the rows of the other class below.
    everywhere = rankdata(table, axis=1)
    v10 = (everywhere[:, truth] - rankdata(table[:, truth], axis=1)) / negatives
    v01 = 1.0 - (everywhere[:, ~truth] - rankdata(table[:, ~truth], axis=1)) / positives
    return v10, v01


def covariance(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUCs [K] of K classifiers on the same rows and their covariance [K, K].

    The covariance is NaN when a class has a single row.

    Raises:
        LsatError: see `placements`.
    """
    v10, v01 = placements(labels, scores)
    aucs = v10.mean(axis=1)
    if v10.shape[1] < 2 or v01.shape[1] < 2:
        return aucs, np.full((len(aucs), len(aucs)), np.nan)
    return aucs, np.atleast_2d(np.cov(v10)) / v10.shape[1] + np.atleast_2d(np.cov(v01)) / v01.shape[1]


def interval(labels: np.ndarray, scores: np.ndarray, level: float = 0.95) -> Interval:
    """Return the AUC of one classifier with its normal interval, clipped to [0, 1].

    All three are NaN when a class is missing, the bounds alone when a class has a single row.
    """
    truth = np.asarray(labels).astype(bool)
    if truth.all() or not truth.any():
        return Interval(np.nan, np.nan, np.nan)
    aucs, variance = covariance(truth, np.asarray(scores)[None])
    auc, half = float(aucs[0]), float(norm.ppf(0.5 + level / 2) * np.sqrt(max(variance[0, 0], 0.0)))
    if np.isnan(variance[0, 0]):
        half = np.nan
    return Interval(auc, float(np.clip(auc - half, 0, 1)), float(np.clip(auc + half, 0, 1)))


def paired_test(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> PairedTest:
    """Test whether two classifiers have the same AUC on the same rows, in the same order.

    p is 1 for classifiers that rank alike (no difference, no variance) and NaN when a class is missing.
    """
    truth = np.asarray(labels).astype(bool)
    if truth.all() or not truth.any():
        return PairedTest(np.nan, np.nan, np.nan)
    aucs, cov = covariance(truth, np.stack([np.asarray(first), np.asarray(second)]))
    difference, variance = float(aucs[0] - aucs[1]), float(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])
    if np.isnan(variance):
        return PairedTest(difference, np.nan, np.nan)
    error = float(np.sqrt(max(variance, 0.0)))
    if error < 1e-12:
        return PairedTest(difference, 0.0, 1.0 if abs(difference) < 1e-12 else 0.0)
    return PairedTest(difference, error, float(2 * norm.sf(abs(difference) / error)))
