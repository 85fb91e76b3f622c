"""The study's own audit: a strategy that reads the labels which it is tested on never gets to train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lsat_ray.data.periods import Slice
from lsat_ray.distributed.study import Study
from lsat_ray.evaluation.leakage import LeakageError
from lsat_ray.strategies.base import Fit
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
        return replace(plan, fit=Fit(plan.adapters, (future,)))


@pytest.fixture
def study(tiny_experiment: Any, tmp_path: Path) -> Study:
    study = Study(tiny_experiment, tmp_path, lambda _: None)
    study.check()
    study.fingerprint = "backbone"
    study.last, study.tested = study.periods.count, range(3, study.periods.count + 1)
    study.rows = {0: study.strategies(study.setting(0))}
    return study


def test_the_paper_s_rows_are_clean(study: Study) -> None:
    study._audit()


@pytest.mark.parametrize("where", ["training", "selection", "parent", "coefficients"])
def test_a_strategy_that_reads_the_future_is_caught(study: Study, where: str) -> None:
    study.rows[0].append(Poisoned(study.setting(0), where))  # type: ignore[arg-type]
    study.rows[0][-1].name = "poisoned"
    with pytest.raises(LeakageError, match=r"leakage into the test on period 3: .* rows of D_3"):
        study._audit()
