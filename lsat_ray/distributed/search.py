"""The search of merge weights on V_t, kept as a Ray Tune experiment per (seed, period); a trial never retrains."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from lsat_ray.config.running import Select
from lsat_ray.errors import LsatError
from lsat_ray.files import write_atomic
from lsat_ray.runs.search import Reached, Weighting, measure

WHOLE = "whole"
"""Empty file in the folder of an experiment that has ended."""

TRIES = 3
"""Times that an experiment is begun whose trial's process dies or hangs."""


BUDGET_S = 300.0
"""Seconds after which Tune ends an experiment; the trials of one take seconds in all."""


def kept(name: str, root: Path) -> bool:
    """Return whether an experiment was kept to its end."""
    return (root / name / WHOLE).is_file()


def keep(
    name: str,
    candidates: Sequence[Weighting],
    label: np.ndarray,
    reached: Sequence[Reached],
    root: Path,
    select: Select,
) -> None:
    """Keep a search as a Tune experiment, and check that every trial reaches what was measured.

    Args:
        name: of the experiment.
        candidates: that were measured.
        label: 0/1 [V], labels of V_t.
        reached: what each reached.
        root: folder of the experiments.
        select: what Tune orders the trials by.

    Raises:
        LsatError: when a trial failed again and again, or reached something else.
    """
    for left in reversed(range(TRIES)):
        try:
            again = search(name, candidates, label, root, select)
            break
        except LsatError:
            if not left:
                raise
    if not np.array_equal(np.array(again), np.array(reached), equal_nan=True):
        raise LsatError(f"search: the trials of {name} disagree with the driver; compare the versions on the nodes")
    write_atomic(root / name / WHOLE, "")


def search(name: str, candidates: Sequence[Weighting], label: np.ndarray, root: Path, select: Select) -> list[Reached]:
    """Measure every candidate as a trial of one Tune experiment; the scores are there already.

    Args:
        name: of the experiment; one of that name that was killed in the middle is replaced.
        candidates: to be measured.
        label: 0/1 [V], labels of V_t.
        root: folder of the experiments.
        select: what Tune orders the trials by.

    Returns:
        What each reached, in their order.

    Raises:
        LsatError: when a trial failed, or time is up.
    """
    from ray import tune

    shutil.rmtree(root / name, ignore_errors=True)
    space = [
        {"strategy": c.strategy, "step": i, "coefficient": c.weights[0], "weights": list(c.weights)}
        for i, c in enumerate(candidates)
    ]
    table = {"scores": [c.score for c in candidates], "label": label}
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, table=ray.put(table)), {"CPU": 0.1}),
        param_space={"candidate": tune.grid_search(space)},
        tune_config=tune.TuneConfig(
            metric="auc" if select == "auc" else "log_loss",
            mode="max" if select == "auc" else "min",
            reuse_actors=True,
            max_concurrent_trials=1,
            time_budget_s=BUDGET_S,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(root.resolve()),
            verbose=0,
        ),
    )
    results = tuner.fit()
    if results.errors:
        raise LsatError(f"search: a trial of {name} failed ({results.errors[0]}); the same command repeats it")
    if sum("auc" in (r.metrics or {}) for r in results) < len(candidates):  # their process hung, or found no place
        raise LsatError(
            f"search: Tune did not end {name} in {BUDGET_S:g} s; look at `ray status`, the same command repeats it"
        )
    frame = results.get_dataframe().set_index("config/candidate/step").loc[list(range(len(candidates)))]
    return [Reached(float(a), float(b)) for a, b in zip(frame["auc"], frame["log_loss"], strict=True)]


def trial(config: dict[str, Any], table: Any) -> None:
    """Report what one candidate reaches."""
    from ray import tune

    table = ray.get(table) if isinstance(table, ray.ObjectRef) else table
    reached = measure(table["label"], table["scores"][config["candidate"]["step"]])
    tune.report({"auc": reached.auc, "log_loss": reached.log_loss})
