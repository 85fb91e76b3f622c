"""The classical rivals behind one interface: which models, which update rules, fit, score (methods.md 3-4).

    spec = rows(periods.fingerprint, seed=0)["mf/fine-tuning"](t)      # a rule names the model of period t
    fitted = fit(spec, periods, initial)                               # initial: the state of spec.init, or None
    scores = score(spec, fitted.state, periods, periods.rows(t + 1))

States are dictionaries of tensors, so that safetensors can hold them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lsat_ray.baselines.logistic import fit_logistic, score_logistic
from lsat_ray.baselines.spec import LEARNERS, ClassicalRecipe, ClassicalSpec, ModelName, named
from lsat_ray.baselines.training import Fitted, State, fit_network, score_network
from lsat_ray.data.periods import Periods, Slice
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


def full_retraining(
    model: ModelName, data: str, period: int, seed: int, recipe: ClassicalRecipe | None = None, warmup: bool = True
) -> ClassicalSpec:
    """Return the model of period t trained afresh on T_1..T_t and V_1..V_{t-1}, selected on V_t.

    Args:
        data: `Periods.fingerprint`.
        warmup: train on the samples before D_1 as well. The paper does not; the nano backbone does see them.
    """
    train = [Slice(t, "train") for t in range(1, period + 1)] + [Slice(t, "validation") for t in range(1, period)]
    return ClassicalSpec(
        model=model,
        recipe=recipe or ClassicalRecipe(),
        data=data,
        train=tuple(train),
        validation=(Slice(period, "validation"),),
        seed=seed,
        warmup=warmup,
    )


def fine_tuning(
    model: ModelName, data: str, period: int, seed: int, recipe: ClassicalRecipe | None = None, warmup: bool = True
) -> ClassicalSpec:
    """Return the model of period t continued from period t - 1 on T_t and V_{t-1}, selected on V_t.

    Period 1 is full retraining. The old weights are kept when no epoch beats them (methods.md 2).
    """
    spec = full_retraining(model, data, 1, seed, recipe, warmup)
    for t in range(2, period + 1):
        spec = ClassicalSpec(
            model=model,
            recipe=spec.recipe,
            data=data,
            train=(Slice(t, "train"), Slice(t - 1, "validation")),
            validation=(Slice(t, "validation"),),
            seed=seed,
            init=spec,
            keep_old=True,
        )
    return spec


RULES: dict[str, Callable[..., ClassicalSpec]] = {"full-retraining": full_retraining, "fine-tuning": fine_tuning}


def rows(
    data: str, seed: int, recipe: ClassicalRecipe | None = None, warmup: bool = True
) -> dict[str, Callable[[int], ClassicalSpec]]:
    """Return, for every row (`mf/full-retraining`, `mf+side/fine-tuning`, ...), the function from period to spec."""

    def plan(learner: str, rule: str) -> Callable[[int], ClassicalSpec]:
        model, mine = named(learner, recipe or ClassicalRecipe())
        return lambda period: RULES[rule](model, data, period, seed, mine, warmup)

    return {f"{learner}/{rule}": plan(learner, rule) for learner in LEARNERS for rule in RULES}


def _check(spec: ClassicalSpec, periods: Periods) -> None:
    if spec.data != periods.fingerprint:
        raise LsatError(
            f"{spec.model}: the spec was made for the data {spec.data[:12]}..., these periods are "
            f"{periods.fingerprint[:12]}...; make the spec from this cut"
        )
    if spec.last_period > periods.count:
        raise LsatError(f"{spec.model}: the spec uses period {spec.last_period}, the cut has {periods.count}")
