"""The choice of merge weights on V_t: candidates, what each reached, and the rule that makes weights of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from lsat_ray.config.running import Select
from lsat_ray.evaluation.metrics import auc, logit_loss

COLUMNS = ["seed", "period", "strategy", "coefficient", "auc", "log_loss", "share"]
"""Of a search's table: one row per candidate, `auc` and `log_loss` on V_t, and its share in the weights chosen."""


@dataclass(frozen=True)
class Weighting:
    """One weighting of one strategy's adapters, scored on V_t."""

    strategy: str
    weights: tuple[float, ...]
    score: np.ndarray
    """float64 [V], P(like)."""
    blend: bool = True
    """Whether its weights may be averaged with others; not where they name one of several models."""


class Reached(NamedTuple):
    """What a candidate reached on V_t."""

    auc: float
    """NaN where V_t holds one class."""
    log_loss: float


def experiment(seed: int, period: int) -> str:
    """Return the name of the search of a period."""
    return f"seed{seed}-period{period:02d}"


def measure(label: np.ndarray, score: np.ndarray) -> Reached:
    """Return AUC and mean log-loss of scores, both [V]."""
    clipped = np.clip(score, 1e-7, 1 - 1e-7)
    return Reached(auc(label, score), logit_loss(label, np.log(clipped) - np.log1p(-clipped)))


def shares(reached: Sequence[Reached], rows: int, select: Select, blend: bool = True) -> np.ndarray:
    """Return the share of every candidate in the weights that are chosen.

    Under `posterior-mean` it is the posterior probability under a flat prior over the candidates, proportional to the
    likelihood of V_t (Bayesian model averaging: Hoeting 1999, equations 1 and 2). Otherwise the best candidate has all,
    the first of equals; log-loss decides where V_t holds one class, and where candidates do not blend.

    Args:
        reached: by candidate.
        rows: V, the samples of V_t.
        select: the rule.
        blend: whether the candidates may be averaged.

    Returns:
        float64 [candidates], which sum to 1.
    """
    auc, log_loss = np.array(reached).T
    if select == "posterior-mean" and blend:
        likelihood = np.exp(-rows * (log_loss - log_loss.min()))
        return np.asarray(likelihood / likelihood.sum())
    best = np.argmax(auc) if select == "auc" and not np.isnan(auc).any() else np.argmin(log_loss)
    return (np.arange(len(reached)) == best).astype(np.float64)


def table(
    seed: int, period: int, candidates: Sequence[Weighting], reached: Sequence[Reached], select: Select
) -> pd.DataFrame:
    """Return one row per candidate, in their order: see `COLUMNS`; `coefficient` is the first of its weights."""
    frame = pd.DataFrame(
        [(seed, period, c.strategy, c.weights[0], *r) for c, r in zip(candidates, reached, strict=True)],
        columns=COLUMNS[:-1],
    )
    share = np.zeros(len(candidates))
    for name in dict.fromkeys(c.strategy for c in candidates):
        mine = [i for i, c in enumerate(candidates) if c.strategy == name]
        first = candidates[mine[0]]
        share[mine] = shares([reached[i] for i in mine], len(first.score), select, first.blend)
    return frame.assign(share=share)


def chosen(candidates: Sequence[Weighting], share: np.ndarray) -> dict[str, tuple[float, ...]]:
    """Return the weights of every strategy: the mean over its candidates, each counted by its share.

    Args:
        candidates: of one search.
        share: float64 [candidates], see `shares`.
    """
    out: dict[str, tuple[float, ...]] = {}
    for name in dict.fromkeys(c.strategy for c in candidates):
        mine = [i for i, c in enumerate(candidates) if c.strategy == name]
        mean = np.sum([share[i] * np.array(candidates[i].weights) for i in mine], axis=0)
        out[name] = tuple(float(w) for w in mean)
    return out
