"""`<row>+side`: a logistic head over a model's margin and the side features, so that the LLM has the rivals' help.

What a row with the head reaches beyond the same head without a margin is what its model adds to the counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lsat_ray.baselines.features import side_table
from lsat_ray.data.periods import Periods
from lsat_ray.errors import LsatError

SIDE = "+side"
"""Added to a row's name: its features are counted online; `+side@period`: up to the start of the tested period."""


@dataclass(frozen=True)
class SideHead:
    """A fitted head: P(like) = sigmoid(weights . (x - centre) / scale + intercept), x = (margin, side features)."""

    weights: np.ndarray
    """float64 [1 + F], the margin's first."""
    intercept: float
    centre: np.ndarray
    """float64 [1 + F], mean over the rows that it was fitted on."""
    scale: np.ndarray
    """float64 [1 + F], standard deviation over them; 1 for a column that does not vary."""


def fit_side_head(margin: np.ndarray, side_features: np.ndarray, label: np.ndarray, strength: float = 1.0) -> SideHead:
    """Fit the head by logistic regression on standardised columns.

    Args:
        margin: l_Yes - l_No of rows that the model was not trained on, float [N].
        side_features: float [N, F].
        label: 0 or 1 [N].
        strength: of the L2 penalty (1 / C of scikit-learn).

    Raises:
        LsatError: when the rows hold one class.
    """
    if len(np.unique(label)) < 2:
        raise LsatError(f"side head: the {len(label)} rows hold one class; fit it on more periods")
    x = _columns(margin, side_features)
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale < 1e-9] = 1.0
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0 / strength, max_iter=1000).fit((x - centre) / scale, label)
    return SideHead(model.coef_[0].astype(np.float64), float(model.intercept_[0]), centre, scale)


def apply_side_head(head: SideHead, margin: np.ndarray, side_features: np.ndarray) -> np.ndarray:
    """Return P(like) of rows, float64 [N]."""
    logit = (_columns(margin, side_features) - head.centre) / head.scale @ head.weights + head.intercept
    return np.asarray((1.0 + np.tanh(logit / 2.0)) / 2.0)  # sigmoid


def with_side(
    periods: Periods, margin: np.ndarray, period: int, side: Literal["online", "period"] = "online"
) -> np.ndarray:
    """Return P(like) of D_(t+1) by the head fitted on every row of D_1..D_t that has a margin, float64 [N].

    Args:
        periods: the stream up to D_(t+1).
        margin: float [rows of the stream], NaN where there is none. Each should come from a model that did not train
            on its row: of period s - 1 for D_s, or of period s for V_s.
        period: t.
        side: freshness of the features, also of the rows that are fitted on.

    Raises:
        LsatError: when a row of D_(t+1) has no margin, or no row up to t has one.
    """
    table = side_table(periods, None if side == "online" else period)
    behind = np.flatnonzero(np.isfinite(margin[: periods.borders[period]]))
    behind = behind[behind >= periods.borders[0]]
    tested = periods.span(period + 1)
    if not len(behind) or not np.isfinite(margin[tested]).all():
        raise LsatError(f"side head: margins of D_{period + 1} and of rows before it are needed; score these first")
    head = fit_side_head(margin[behind], table[behind], periods.samples.label[behind])
    return apply_side_head(head, margin[tested], table[tested])


def _columns(margin: np.ndarray, side_features: np.ndarray) -> np.ndarray:
    return np.column_stack([np.asarray(margin, dtype=np.float64), np.asarray(side_features, dtype=np.float64)])
