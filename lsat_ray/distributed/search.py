"""The search of merge weights on V_t: one Ray Tune experiment per (seed, period); a trial never retrains."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray

from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.evaluation import delong
from lsat_ray.runs.tasks import Score
from lsat_ray.scoring.model import Model, combine


def experiment(seed: int, period: int) -> str:
    """Return the name of the Tune experiment of a search."""
    return f"seed{seed}-period{period:02d}"


def search(
    models: list[Model],
    grids: list[tuple[tuple[float, ...], ...]],
    margins: dict[str, np.ndarray],
    label: np.ndarray,
    period: int,
    queue: Any,
    root: Path,
) -> pd.DataFrame:
    """Try every weight of every model's grid on V_t and return what each reached.

    Output ensembles are computed from stored margins and call no model; merges in parameter space ask a training
    session for one forward pass over V_t.

    Args:
        models: one a strategy, its weights not yet chosen.
        grids: the weights to try, one grid a model, in the order in which ties are broken.
        margins: validation margins float32 [V] by adapter digest, aligned with `label`.
        label: 0/1 [V], labels of V_t.
        period: t.
        queue: handle of the training queue.
        root: folder of the search experiments.

    Returns:
        seed, period, strategy, coefficient (the first weight), auc (on V_t), chosen (the first best).
    """
    from ray import tune

    name = experiment(models[0].seed, period)
    shutil.rmtree(root / name, ignore_errors=True)  # of a run that was killed in the middle
    table = {
        "models": {m.strategy: m for m in models},
        "margins": margins,
        "label": label,
        "period": period,
        "queue": [queue],
    }
    candidates = [
        {"strategy": m.strategy, "step": i, "coefficient": weights[0], "weights": list(weights)}
        for m, grid in zip(models, grids, strict=True)
        for i, weights in enumerate(grid)
    ]
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, table=ray.put(table)), {"CPU": 0.1}),
        param_space={"candidate": tune.grid_search(candidates)},
        tune_config=tune.TuneConfig(metric="auc", mode="max", reuse_actors=True, max_concurrent_trials=1),
        run_config=tune.RunConfig(name=name, storage_path=str(root.resolve()), verbose=0),
    )
    results = tuner.fit()
    if results.errors:
        raise LsatError(f"search: a trial of period {period} failed ({results.errors[0]}); the same command repeats it")
    frame = results.get_dataframe()
    keys = zip(frame["config/candidate/strategy"], frame["config/candidate/step"].astype(int), strict=True)
    reached = dict(zip(keys, zip(frame["auc"], frame["log_loss"], strict=True), strict=True))
    rows = []
    for model, grid in zip(models, grids, strict=True):
        auc, loss = np.array([reached[(model.strategy, i)] for i in range(len(grid))]).T
        best = int(np.argmin(loss) if np.isnan(auc).any() else np.argmax(auc))  # V_t of one class has no AUC
        for i, weights in enumerate(grid):
            rows.append(
                {
                    "seed": model.seed,
                    "period": period,
                    "strategy": model.strategy,
                    "coefficient": weights[0],
                    "auc": float(auc[i]),
                    "chosen": i == best,
                }
            )
    return pd.DataFrame(rows)


def trial(config: dict[str, Any], table: Any) -> None:
    """Report the validation AUC of one candidate."""
    from ray import tune

    table = ray.get(table) if isinstance(table, ray.ObjectRef) else table
    candidate = config["candidate"]
    model = replace(table["models"][candidate["strategy"]], weights=tuple(candidate["weights"]))
    if model.merge == "output-ensemble":
        margin = [table["margins"][digest] for digest in model.adapters]
    else:
        margin = _ask(table["queue"][0], model, table["period"])
    score = combine(model, margin)
    tune.report({"auc": delong.interval(table["label"], score).auc, "log_loss": _log_loss(table["label"], score)})


def _ask(queue: Any, model: Model, period: int) -> list[np.ndarray]:
    task = Score(model, (Slice(period, "validation"),), period)
    ray.get(queue.submit.remote([task], set(model.adapters)))
    while (states := ray.get(queue.wait.remote([task.key], 10.0))) is None:
        pass
    state, result = states[task.key]
    ray.get(queue.forget.remote([task.key]))
    if state == "failed":
        raise LsatError(result)
    margins: list[np.ndarray] = result[1]
    return margins


def _log_loss(label: np.ndarray, score: np.ndarray) -> float:
    clipped = np.clip(score, 1e-7, 1 - 1e-7)
    return float(-np.where(label > 0, np.log(clipped), np.log1p(-clipped)).mean())
