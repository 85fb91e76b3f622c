"""`hedge`: a mixture of everything that is served, weighted by each model's log-loss on the periods behind.

Exponential weights (Vovk 1990; Freund and Schapire 1997), with experts that may sleep (Freund et al. 1997). A period is
one round: its loss is the mean log-loss of its rows, and the weights do not move inside it. With eta at most 1,

    sum over the periods with m of (loss of the mixture - loss of m)  <=  ln(M) / eta      for each of the M experts m.

It follows from the loss of a round being exp-concave: the geometric mean over rows of w . p is concave in w. Counted in
rows, with N of them in each period, the right side is N ln(M) / eta, and no rule that waits for a period's end has a
better worst case. Rounds of a single row give the textbook bound, ln M in the sum over all rows. A larger eta follows
the best expert faster and has no such bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lsat_ray.errors import LsatError

CLIP = 1e-7
"""Experts' probabilities are kept that far from 0 and 1, so that no single row costs more than 16 nats."""


class Hedged(NamedTuple):
    """The mixture of every period and what it was made of."""

    mixture: list[np.ndarray]
    """P(like) float64 [N_t], one array a period."""
    weights: list[dict[str, float]]
    """Weight of every expert that was there, summing to 1, by period."""


def hedge(probability: Sequence[Mapping[str, np.ndarray]], label: Sequence[np.ndarray], eta: float = 1.0) -> Hedged:
    """Mix the experts of each period by their losses on the periods before it.

    An expert that is missing from a period sleeps: the others share its weight, and it is charged what the mixture
    lost, as if it had said the same. So one that comes late starts level, not as if it had never been wrong.

    Args:
        probability: for every period, expert -> calibrated P(like) [N_t].
        label: for every period, 0 or 1 [N_t]; the last period's may be left out, for they are not read.
        eta: how fast losses turn into weights; the bound asks for at most 1.

    Raises:
        LsatError: naming expert and period when a period has no expert, a score is no probability or lengths differ.
    """
    if len(label) < len(probability) - 1:
        raise LsatError(f"hedge: labels of {len(label)} periods for {len(probability)}; all but the last are needed")
    loss: dict[str, float] = {}
    behind = 0.0  # the mixture's own loss so far: what a sleeper is charged
    out = Hedged([], [])
    for t, found in enumerate(probability):
        experts = {name: _checked(name, t, p) for name, p in found.items()}
        if not experts or len({len(p) for p in experts.values()}) > 1:
            raise LsatError(f"hedge: period {t + 1} of {len(probability)} needs experts that score the same rows")
        weights = _weights({name: loss.get(name, behind) for name in experts}, eta)
        mixed = np.sum([weights[name] * p for name, p in experts.items()], axis=0)
        out.mixture.append(mixed)
        out.weights.append(weights)
        if t < len(label):
            if len(label[t]) != len(mixed):
                raise LsatError(f"hedge: period {t + 1} has {len(label[t])} labels for {len(mixed)} rows")
            mine = log_loss(mixed, label[t])
            for name in loss.keys() | experts.keys():
                seen = log_loss(experts[name], label[t]) if name in experts else mine
                loss[name] = loss.get(name, behind) + seen
            behind += mine
    return out


def log_loss(probability: np.ndarray, label: np.ndarray) -> float:
    """Return the mean of -ln P(label) over rows."""
    return -float(np.mean(np.log(np.where(np.asarray(label) == 1, probability, 1.0 - probability))))


def _weights(loss: Mapping[str, float], eta: float) -> dict[str, float]:
    raw = np.exp(-eta * (np.array(list(loss.values())) - min(loss.values())))
    return dict(zip(loss, (raw / raw.sum()).tolist(), strict=True))


def _checked(name: str, t: int, probability: np.ndarray) -> np.ndarray:
    values = np.asarray(probability, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not ((values >= 0) & (values <= 1)).all():
        raise LsatError(f"hedge: {name} in period {t + 1} is no P(like); leave out rows that are not calibrated")
    return np.clip(values, CLIP, 1.0 - CLIP)
