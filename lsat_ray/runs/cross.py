"""Cross scores: models of one period scored on another, for Figures 2 to 4 and for serving lags."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lsat_ray.data.periods import Slice
from lsat_ray.files import write_atomic
from lsat_ray.runs import steps
from lsat_ray.runs.context import Run
from lsat_ray.scoring.model import CLASSICAL, FROZEN, IN_CONTEXT, OUTPUT_MERGES, RECLORA, Model
from lsat_ray.strategies import RULES, Strategy

FILE = "cross.parquet"


def first_model(run: Run) -> int:
    """Return the first period after which a model is wanted."""
    return max(1, run.config.first_test - max((1, *run.config.study.lags)))


def split(run: Run) -> int:
    """Return the period after which Fig. 3 splits warm and cold items."""
    return run.config.study.warm_cold_after or max(run.config.first_test - 1, run.periods.count * 3 // 4)


def followed(run: Run, seed: int) -> list[Strategy]:
    """Return the rows that Fig. 2 and 4 follow from the first period on: full retraining and fine-tuning, one seed."""
    if not run.config.study.every_period or seed != run.config.seeds[0]:
        return []
    return [s for s in run.strategies[seed] if s.name.rpartition("/")[2] in RULES]


def score(run: Run) -> None:
    """Score the models that figures and lags need besides the table, and keep their cross scores."""
    wanted = [w for seed in run.config.seeds for w in _wanted(run, seed)]
    known = steps.margins(run, wanted)
    frames = [_frame(run, m, s.period, steps.combined(m, s, known)) for m, s in wanted]
    if frames:
        table = pd.concat(frames, ignore_index=True).drop_duplicates(["strategy", "seed", "trained", "row"])
        write_atomic(run.folder.path / FILE, table)


def _wanted(run: Run, seed: int) -> list[steps.Wanted]:
    last = run.periods.count
    wanted: list[steps.Wanted] = []
    for row in followed(run, seed):
        for t in range(1, last):
            if (plan := row.plan(t)) is not None:
                wanted.append((steps.model(seed, row.name, t, plan, plan.grid[0]), Slice(last, "all")))
    # Merges in parameter space would each need passes of their own, and share their items with the ensemble.
    kinds = (FROZEN, "single", CLASSICAL, RECLORA, *OUTPUT_MERGES)
    later = [Slice(t, "all") for t in range(split(run) + 1, last + 1)]
    wanted += [(m, s) for m in steps.models(run, seed, split(run)) if m.merge in kinds for s in later]
    for k in run.config.study.lags:
        wanted += [
            (m, Slice(t, "all")) for t in run.tested for m in steps.models(run, seed, t - k) if m.merge != IN_CONTEXT
        ]
    return wanted


def _frame(run: Run, m: Model, t: int, scores: np.ndarray) -> pd.DataFrame:
    rows = run.periods.rows(t)
    columns = {"row": rows.row, "item": rows.item, "label": rows.label, "score": scores}
    return pd.DataFrame({"strategy": m.strategy, "seed": m.seed, "trained": m.period, "tested": t, **columns})
