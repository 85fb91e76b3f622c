"""The study's tables: Table 2, the figures' data, and what a serving lag costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lsat_ray.evaluation.metrics import auc
from lsat_ray.evaluation.slices import user_slices
from lsat_ray.evaluation.warmcold import seen_items
from lsat_ray.files import write_atomic
from lsat_ray.report import cross as curves
from lsat_ray.report import study as figures
from lsat_ray.report.account import fits, training
from lsat_ray.report.reader import RunReader
from lsat_ray.runs import cross, derived, steps
from lsat_ray.runs.context import Run
from lsat_ray.scoring.model import OUTPUT_MERGES, Model, passes
from lsat_ray.strategies import RULES, Derived


def write(run: Run, metrics: pd.DataFrame) -> None:
    """Write `table2.csv` and `study/*.csv`."""
    write_atomic(run.folder.path / "timings.parquet", run.timings.frame())
    read = RunReader(run.folder.path)
    assert read.timings is not None
    names = sorted(set(metrics["strategy"]))
    spent = training(read.timings, read.ledger, names, len(run.config.seeds))
    stopped = fits(read.ledger, {m["digest"]: m["facts"] for m in read.manifests}, names)
    noise = run.config.study.noise
    tables = {"table2": figures.table2(metrics, read.scores, spent, fits=stopped, noise=noise)}
    if run.config.study.paper:
        tables["paper"] = figures.beside_paper(tables["table2"], run.config.study.paper)
    if run.config.study.against:
        tables["paired"] = figures.against(read.scores, run.config.study.against, noise=noise)
    served = {m.strategy: m for m in steps.models(run, run.config.seeds[0], run.periods.count - 1)}
    tables["frontier"] = figures.frontier(tables["table2"], _passes(run, list(served.values())))
    masks = {t: user_slices(run.periods, t) for t in run.tested}
    tables["slices"] = figures.by_slice(read.scores, masks, noise=noise)
    tables |= _merges(read, metrics, served, noise)
    tables |= _crossed(run, metrics)
    figures.write(run.folder.path, **tables)


def _passes(run: Run, models: Sequence[Model]) -> dict[str, int]:
    """Return the forward passes that a score takes, by row; a derived row takes those of what it is computed from."""
    out = {m.strategy: len(passes(m)) for m in models}
    for row in run.strategies[run.config.seeds[0]]:
        if isinstance(row, Derived):
            out[row.name] = len({one.digest for m in derived.sources(row, models) for one in passes(m)})
    return out


def _merges(
    read: RunReader, metrics: pd.DataFrame, served: dict[str, Model], noise: float | None
) -> dict[str, pd.DataFrame]:
    """Return what merges in parameter space lose against the ensemble of the same adapters."""
    ensemble = next((n for n in served if n.startswith("lsat-en(") and n != "lsat-en(full)"), None)
    merged = [n for n, m in served.items() if len(m.adapters) > 1 and m.merge not in OUTPUT_MERGES]
    if not ensemble or not merged:
        return {}
    return {"merges": figures.against_ensemble(metrics, read.scores, ensemble, merged, noise)}


def _crossed(run: Run, metrics: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tables of Figures 2 to 4 and of the lags."""
    file = run.folder.path / cross.FILE
    if not file.exists():
        return {}
    scores, out = pd.read_parquet(file), {}
    if run.config.study.every_period:
        rules = scores["strategy"].str.rpartition("/")[2].isin(RULES)
        m = run.config.study.warm_until or run.config.replay.long_periods
        out["fig2"] = curves.curve_on(scores[rules], run.periods.count)
        out["fig4"] = curves.curve_on(scores[rules], run.periods.count, _seen(run, m))
    out["fig3"] = curves.warm_and_cold(scores, cross.split(run), _seen(run, cross.split(run)))
    if run.config.study.lags:
        out["lag"] = _lags(run, metrics, scores)
    return out


def _seen(run: Run, until: int) -> np.ndarray:
    """Return the items of D_1..D_until and of the warm-up samples that the backbone or a rival is built from."""
    first, nano = run.periods.borders[0], run.config.backbone.nano.rows
    used = 0 if run.config.backbone.path != "nano" else first if nano is None else nano
    if any("/" in strategy.name for strategy in run.strategies[run.config.seeds[0]]):
        used = max(used, run.config.baselines.warmup_rows)
    return seen_items(run.periods, range(1, until + 1), warmup=min(first, used))


def _lags(run: Run, metrics: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean AUC by strategy and serving lag."""
    late = scores.assign(lag=scores["tested"] - scores["trained"])
    late = late[late["lag"].isin(run.config.study.lags) & late["tested"].isin(list(run.tested))]
    keys = ["strategy", "seed", "tested", "lag"]
    found = [
        dict(zip(keys, key, strict=True)) | {"auc": auc(g["label"].to_numpy(), g["score"].to_numpy())}
        for key, g in late.groupby(keys)
    ]
    table = pd.concat([pd.DataFrame(found), metrics.assign(lag=1)], ignore_index=True)
    return table.groupby(["strategy", "lag"])["auc"].mean().reset_index()
