"""The choice of merge weights on V_t: candidates, what each reached, and the rule that picks one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from lsat_ray.config.running import Select
from lsat_ray.evaluation.metrics import auc, logit_loss

COLUMNS = ["seed", "period", "strategy", "coefficient", "auc", "log_loss", "chosen"]


@dataclass(frozen=True)
class Weighting:
    """One weighting of one strategy's adapters, scored on V_t."""

    strategy: str
    weights: tuple[float, ...]
    score: np.ndarray
    """float64 [V], P(like)."""


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


def best(reached: Sequence[Reached], select: Select) -> int:
    """Return the place of the best candidate, the first of equals; where V_t holds one class, log-loss decides."""
    auc, log_loss = np.array(reached).T
    return int(np.argmin(log_loss) if select == "log-loss" or np.isnan(auc).any() else np.argmax(auc))


def table(
    seed: int, period: int, candidates: Sequence[Weighting], reached: Sequence[Reached], select: Select
) -> pd.DataFrame:
    """Return one row per candidate: seed, period, strategy, coefficient (the first weight), auc, log_loss, chosen."""
    rows = []
    for name in dict.fromkeys(c.strategy for c in candidates):
        mine = [i for i, c in enumerate(candidates) if c.strategy == name]
        chosen = mine[best([reached[i] for i in mine], select)]
        rows += [(seed, period, name, candidates[i].weights[0], *reached[i], i == chosen) for i in mine]
    return pd.DataFrame(rows, columns=COLUMNS)
