"""Metrics of one strategy's scores on one period."""

from __future__ import annotations

from typing import Any

import numpy as np

from lsat_ray.errors import LsatError
from lsat_ray.evaluation import delong

CLIP = 1e-7
"""Least distance of a probability from 0 and 1 in the log-loss: about the resolution of a float32 score."""

FIELDS = ("auc", "auc_low", "auc_high", "log_loss", "accuracy", "rows", "positives", "gauc", "ece")
"""Keys of `summarise`, in the order of `metrics.parquet`."""


def summarise(labels: np.ndarray, scores: np.ndarray, users: np.ndarray, probability: bool = True) -> dict[str, Any]:
    """Return the metrics of one strategy on one period (methods.md 0.1).

    Args:
        labels: [N], 0 or 1.
        scores: [N], higher for a likelier like.
        users: [N], whose samples depend on each other.
        probability: whether scores are P(like); without it log-loss, accuracy and ECE mean nothing and are NaN.

    Returns:
        `FIELDS`: AUC over all samples with its 95 % interval by user (`delong.interval`), log-loss (of the
        probabilities, in nats; the reference code takes it of thresholded 0/1 predictions), accuracy at 0.5, samples
        and positives, AUC within users (`gauc`), calibration error (`ece`). AUC is NaN where a class is missing.

    Raises:
        LsatError: on unequal lengths, scores that are not finite, labels besides 0 and 1, probabilities outside [0, 1].
    """
    truth, values = _checked(labels, scores, probability)
    _one_user_per_label(users, truth)
    result: dict[str, Any] = dict.fromkeys(FIELDS, float("nan"))
    result |= {"rows": len(truth), "positives": int(truth.sum())}
    if len(truth) == 0:
        return result
    _, low, high = delong.interval(truth, values, users)
    result |= {"auc": auc(truth, values), "auc_low": low, "auc_high": high, "gauc": gauc(truth, values, users)}
    if probability:
        from sklearn.metrics import log_loss  # half a second: only who needs it pays

        result["log_loss"] = float(log_loss(truth, np.clip(values, CLIP, 1 - CLIP), labels=[0, 1]))
        result["accuracy"] = float(((values >= 0.5) == truth.astype(bool)).mean())
        result["ece"] = ece(truth, values)
    return result


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Return the AUC over all samples, ties counted one half; NaN where a class is missing (or there is no sample).

    Counted in half pairs: equal rankings have equal values to the last bit, so that "the first of equals" is certain.

    Raises:
        LsatError: on unequal lengths, scores that are not finite, labels besides 0 and 1.
    """
    truth, values = _checked(label, score, probability=False)
    positives, negatives = int(truth.sum()), int((truth == 0).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    outranked = delong.midranks(values)[truth == 1].sum() - positives * (positives + 1) / 2
    return float(outranked / (positives * negatives))


def auc_or_log_loss(label: np.ndarray, score_logit: np.ndarray) -> float:
    """Return what validation selects by, higher is better: the AUC, or minus the log-loss where a class is missing.

    Every choice on V_t (the step that is kept, merge weights) is the first of the highest. The AUC is counted in half
    pairs, so that equal rankings have equal values to the last bit and "the first of equals" does not hang on rounding.

    Args:
        label: [N], 0 or 1, at least one.
        score_logit: [N], log-odds of a like (a margin, or the logit of a probability).
    """
    found = auc(label, score_logit)
    return -logit_loss(label, score_logit) if np.isnan(found) else found


def logit_loss(label: np.ndarray, score_logit: np.ndarray) -> float:
    """Return the mean log-loss of log-odds, in nats, without clipping."""
    sign = np.where(np.asarray(label) > 0, 1.0, -1.0)
    return float(np.logaddexp(0.0, -sign * np.asarray(score_logit, dtype=np.float64)).mean())


def user_aucs(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the AUC within each user.

    Args:
        labels: [N].
        scores: [N].
        users: [N].

    Returns:
        users [U], AUC [U] (NaN where the user has one class only) and samples [U].
    """
    truth, values = _checked(labels, scores, probability=False)
    _one_user_per_label(users, truth)
    if len(truth) == 0:
        return np.asarray(users)[:0], np.empty(0), np.empty(0, dtype=np.int64)
    names, user = np.unique(users, return_inverse=True)
    order = np.lexsort((values, user))
    user, truth, values = user[order], truth[order].astype(np.float64), values[order]
    # Midranks within a user: the mean position of each run of equal scores, less where the user begins.
    run = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (values[1:] != values[:-1])])
    length = np.diff(np.r_[run, len(user)])
    begin = np.searchsorted(user, np.arange(len(names)))
    midrank = np.repeat(run + (length + 1) / 2, length) - begin[user]
    rows = np.bincount(user)
    positive = np.bincount(user, truth)
    ranks = np.bincount(user, midrank * truth)
    with np.errstate(invalid="ignore", divide="ignore"):
        result = (ranks - positive * (positive + 1) / 2) / (positive * (rows - positive))
    return names, result, rows


def gauc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> float:
    """Return the mean of the users' AUCs weighted by their samples, over users with both classes (NaN without any)."""
    _, values, rows = user_aucs(labels, scores, users)
    known = np.isfinite(values)
    return float(np.average(values[known], weights=rows[known])) if known.any() else float("nan")


def ece(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> float:
    """Return the expected calibration error: mean |observed - predicted| over equal-width bins, weighted by samples."""
    truth, values = _checked(labels, scores, probability=True)
    if len(truth) == 0:
        return float("nan")
    index = np.minimum((values * bins).astype(np.int64), bins - 1)
    gap = np.bincount(index, truth, minlength=bins) - np.bincount(index, values, minlength=bins)
    return float(np.abs(gap).sum() / len(truth))


def _one_user_per_label(users: np.ndarray, labels: np.ndarray) -> None:
    if np.shape(users) != labels.shape:
        raise LsatError(f"metrics: users {np.shape(users)} for labels {labels.shape}; give one user per label")


def _checked(labels: np.ndarray, scores: np.ndarray, probability: bool) -> tuple[np.ndarray, np.ndarray]:
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise LsatError(f"metrics: labels {truth.shape} and scores {values.shape}; give one score per label")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise LsatError(f"metrics: row {row}: score {values[row]} is not finite; every scored row must have a score")
    if not np.isin(truth, (0, 1)).all():
        row = int(np.flatnonzero(~np.isin(truth, (0, 1)))[0])
        raise LsatError(f"metrics: row {row}: label {truth[row]} is neither 0 nor 1")
    if probability and len(values) and (values.min() < 0 or values.max() > 1):
        row = int(np.flatnonzero((values < 0) | (values > 1))[0])
        raise LsatError(
            f"metrics: row {row}: {values[row]:.6g} is no probability; pass probability=False for plain scores"
        )
    return truth.astype(np.int64), values
