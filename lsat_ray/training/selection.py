"""Which of the weights that were validated are kept: one function per rule.

AUC on a few dozen rows is a staircase, and its best step hangs on chance; the other rules lean on more than one value.
Every rule gets the candidates in the order of their steps and returns the positions of those that are kept: one, or
several whose weights are averaged. The first of equals wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lsat_ray.adapters.lora import Adapter
from lsat_ray.evaluation import delong
from lsat_ray.evaluation.metrics import auc_or_log_loss, logit_loss


@dataclass(frozen=True)
class Candidate:
    """Weights that were validated."""

    step: int
    """0 is the start."""
    adapter: Adapter
    margin: np.ndarray
    """What the objective measured: float32 [V], l_Yes - l_No on the validation targets, under the rules below."""


Rule = Callable[[Sequence[Candidate], np.ndarray], tuple[int, ...]]
"""(candidates in the order of their steps, labels [V]) -> positions of those that are kept."""


def best_auc(found: Sequence[Candidate], label: np.ndarray) -> tuple[int, ...]:
    """Keep the highest AUC."""
    return (int(np.argmax(_aucs(found, label))),)


def best_log_loss(found: Sequence[Candidate], label: np.ndarray) -> tuple[int, ...]:
    """Keep the lowest log-loss, which is smooth in the weights."""
    return (int(np.argmin([logit_loss(label, c.margin) for c in found])),)


def smoothed_auc(found: Sequence[Candidate], label: np.ndarray) -> tuple[int, ...]:
    """Keep the highest mean of the AUC over a validation and its two neighbours."""
    values = _aucs(found, label)
    return (int(np.argmax([values[max(0, i - 1) : i + 2].mean() for i in range(len(values))])),)


def one_standard_error(found: Sequence[Candidate], label: np.ndarray) -> tuple[int, ...]:
    """Keep the first whose AUC is at most one standard error (DeLong) below the best (Breiman 1984, section 3.4.3)."""
    values = _aucs(found, label)
    best = int(np.argmax(values))
    error = 0.0
    if 0 < label.sum() < len(label):
        _, variance, _ = delong.variance(label, found[best].margin)
        error = float(np.sqrt(np.nan_to_num(variance)))  # unknown where a class has a single row
    return (int(np.argmax(values >= values[best] - error)),)


def averaged(found: Sequence[Candidate], label: np.ndarray) -> tuple[int, ...]:
    """Average the weights of the highest AUC and of its two neighbours (Izmailov 2018, around the best)."""
    (best,) = best_auc(found, label)
    return tuple(range(max(0, best - 1), min(len(found), best + 2)))


RULES: dict[str, Rule] = {
    "auc": best_auc,
    "log-loss": best_log_loss,
    "smoothed-auc": smoothed_auc,
    "one-se": one_standard_error,
    "averaged": averaged,
}
"""Rules by `Recipe.select`."""

GREEDY = ("auc", "log-loss")
"""Rules that never come back to a candidate that was beaten: only the best so far is held in memory."""


def measure(select: str, label: np.ndarray, margin: np.ndarray) -> float:
    """Return what patience and `keep_old` compare under a rule, higher is better."""
    return -logit_loss(label, margin) if select == "log-loss" else auc_or_log_loss(label, margin)


def mean(adapters: Sequence[Adapter]) -> Adapter:
    """Return the entry-by-entry mean of the weights of adapters of one shape."""
    first = adapters[0]
    if len(adapters) == 1:
        return first
    state = {k: sum(a.state[k] for a in adapters) / len(adapters) for k in first.state}
    return Adapter(state, first.rank, first.alpha)  # type: ignore[arg-type]


def _aucs(found: Sequence[Candidate], label: np.ndarray) -> np.ndarray:
    return np.array([auc_or_log_loss(label, c.margin) for c in found])
