"""The study's own audit: a strategy that reads the labels which it is tested on never gets to train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from lsat_ray.data.periods import Slice
from lsat_ray.evaluation.leakage import LeakageError
from lsat_ray.runs.check import check
from lsat_ray.runs.context import Run
from lsat_ray.runs.study import audit
from lsat_ray.strategies import make
from lsat_ray.strategies.base import Learned
from lsat_ray.strategies.full_retraining import FullRetraining


class Poisoned(FullRetraining):
    """Full retraining that also reads the next period: with its labels the AUC would be 1."""

    def __init__(self, setting: Any, where: str) -> None:
        super().__init__(setting)
        self.where = where

    def plan(self, t: int) -> Any:
        plan = super().plan(t)
        spec = plan.adapters[0]
        future = Slice(t + 1, "train")
        if self.where == "training":
            return replace(plan, adapters=(replace(spec, train=(*spec.train, future)),))
        if self.where == "selection":
            return replace(plan, adapters=(replace(spec, validation=(Slice(t + 1, "validation"),)),))
        if self.where == "parent":
            return replace(plan, adapters=(replace(spec, init=replace(spec, train=(future,))),))
        return replace(plan, learned=Learned(plan.adapters, (future,)))


class Audited(NamedTuple):
    """What the audit looks at of a run."""

    config: Any
    periods: Any
    tested: range
    strategies: Any
    say: Any

    plans = Run.plans


@pytest.fixture
def run(tiny_experiment: Any) -> Audited:
    checked = check(tiny_experiment)
    rows = {0: make(checked.setting("backbone", 0))}
    return Audited(tiny_experiment, checked.periods, range(3, checked.periods.count + 1), rows, lambda _: None)


def test_the_papers_rows_are_clean(run: Any) -> None:
    audit(run)


@pytest.mark.parametrize("where", ["training", "selection", "parent", "coefficients"])
def test_a_strategy_that_reads_the_future_is_caught(run: Any, where: str) -> None:
    poisoned = Poisoned(check(run.config).setting("backbone", 0), where)
    poisoned.name = "poisoned"
    run.strategies[0].append(poisoned)
    with pytest.raises(LeakageError, match=r"leakage into the test on period 3: .* rows of D_3"):
        audit(run)
