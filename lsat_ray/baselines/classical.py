"""The classical rivals behind one interface: fit, score (methods.md 3-4). Their update rules are `strategies`' own.

    fitted = fit(spec, periods, initial)                               # initial: the state of spec.init, or None
    scores = score(spec, fitted.state, periods, periods.rows(t + 1))

States are dictionaries of tensors, so that safetensors can hold them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lsat_ray.baselines.logistic import fit_logistic, score_logistic
from lsat_ray.baselines.spec import ClassicalSpec, ModelName
from lsat_ray.baselines.training import Fitted, State, fit_network, score_network
from lsat_ray.data.periods import Periods
from lsat_ray.data.windows import Samples
from lsat_ray.errors import LsatError


class Model(NamedTuple):
    """How one family is fitted and applied."""

    fit: Callable[[ClassicalSpec, Periods, State | None], Fitted]
    score: Callable[[ClassicalSpec, State, Periods, Samples], np.ndarray]


MODELS: dict[ModelName, Model] = {
    "mf": Model(fit_network, score_network),
    "deepmusic": Model(fit_network, score_network),
    "gru4rec": Model(fit_network, score_network),
    "caser": Model(fit_network, score_network),
    "sasrec": Model(fit_network, score_network),
    "din": Model(fit_network, score_network),
    "logistic": Model(fit_logistic, score_logistic),
}


def fit(spec: ClassicalSpec, periods: Periods, initial: State | None = None) -> Fitted:
    """Fit the model that a spec names.

    Args:
        initial: state of `spec.init`; None exactly when the spec has none.

    Raises:
        LsatError: when the spec was made for another cut, or `initial` does not go with it.
    """
    _check(spec, periods)
    if (initial is None) != (spec.init is None):
        problem = "a fresh spec was given a state" if spec.init is None else "the state of init is missing"
        raise LsatError(f"{spec.model}: {problem}; pass the state of spec.init, or None when there is none")
    return MODELS[spec.model].fit(spec, periods, initial)


def score(spec: ClassicalSpec, state: State, periods: Periods, samples: Samples) -> np.ndarray:
    """Return one float64 score a sample, [N]; larger means likelier to be liked.

    Args:
        periods: the stream, for its vocabulary, titles and the causal counts before each sample's row.
        samples: rows of that stream.
    """
    _check(spec, periods)
    return MODELS[spec.model].score(spec, state, periods, samples)


def _check(spec: ClassicalSpec, periods: Periods) -> None:
    if spec.data != periods.fingerprint:
        raise LsatError(
            f"{spec.model}: the spec was made for the data {spec.data[:12]}..., these periods are "
            f"{periods.fingerprint[:12]}...; make the spec from this cut"
        )
    if spec.last_period > periods.count:
        raise LsatError(f"{spec.model}: the spec uses period {spec.last_period}, the cut has {periods.count}")
