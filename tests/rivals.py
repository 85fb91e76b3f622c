"""Specs of the classical rivals, by the rules that every learner shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lsat_ray.baselines.spec import LEARNERS, ClassicalSpec
from lsat_ray.config import ClassicalRecipe, Experiment
from lsat_ray.strategies import RULES, STRATEGIES, Setting

Plan = Callable[[int], ClassicalSpec]


def rows(data: str, seed: int, recipe: ClassicalRecipe | None = None) -> dict[str, Plan]:
    """Return, for every classical row, the function from period to spec."""
    setting = Setting("", data, Experiment(baselines=recipe or ClassicalRecipe()), seed)

    def plan(name: str) -> Plan:
        return lambda t: STRATEGIES[name](setting).plan(t).adapters[0]  # type: ignore[union-attr, return-value]

    return {name: plan(name) for name in (f"{learner}/{rule}" for learner in LEARNERS for rule in RULES)}


def full_retraining(
    learner: str, data: str, period: int, seed: int, recipe: ClassicalRecipe | None = None, warmup: bool = True
) -> ClassicalSpec:
    """Return the model of a period, trained afresh."""
    return replace(rows(data, seed, recipe)[f"{learner}/full-retraining"](period), warmup=warmup)


def fine_tuning(
    learner: str, data: str, period: int, seed: int, recipe: ClassicalRecipe | None = None
) -> ClassicalSpec:
    """Return the model of a period that goes on from the one before."""
    return rows(data, seed, recipe)[f"{learner}/fine-tuning"](period)
