"""The study as tables and parts of the report: Table 2 of the LSAT paper, what a score costs, merges (methods.md 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from lsat_ray.errors import LsatError
from lsat_ray.evaluation.metrics import auc
from lsat_ray.evaluation.significance import RESAMPLES, Key, Runs, Scored, compare_all
from lsat_ray.files import write_atomic
from lsat_ray.report.cross import draw_curve, draw_warm_and_cold
from lsat_ray.report.reader import RunReader
from lsat_ray.report.style import Drawn
from lsat_ray.report.tables import REFERENCE, mean_auc, noise_line

PAPER: Mapping[str, Mapping[str, float]] = {
    "ml-1m": {
        "full-retraining": 0.7650,
        "fine-tuning": 0.7594,
        "short-term": 0.7638,
        "long-term": 0.7617,
        "lsat-ta(10)": 0.7665,
        "lsat-en(full)": 0.7691,
        "lsat-en(10)": 0.7720,
    },
    "amazon-book": {
        "full-retraining": 0.7780,
        "fine-tuning": 0.7696,
        "short-term": 0.7806,
        "long-term": 0.7789,
        "lsat-ta(10)": 0.7813,
        "lsat-en(full)": 0.7822,
        "lsat-en(10)": 0.7830,
    },
}
"""Table 2 of the paper: mean AUC over D_11..D_20 of TALLRec on LLaMA-7B, one seed, no intervals."""

TABLE2 = [
    "strategy",
    "mean_auc",
    "ci_low",
    "ci_high",
    "delta",
    "p_adjusted",
    "verdict",
    "trainings",
    "training_seconds",
    "gauc",
    "log_loss",
    "ece",
    "steps",
    "stopped_by_patience",
]
"""Columns of `table2.csv`."""

USERS = "validation_users"
"""Column of `table2` where the users of the validation splits are given."""


@dataclass(frozen=True)
class StudyPart:
    """A table or a figure of the study, for the report."""

    title: str
    caption: str = ""
    table: pd.DataFrame | None = None
    drawn: Drawn | None = None


def table2(
    metrics: pd.DataFrame,
    scores: Mapping[str, Runs],
    trainings: pd.DataFrame,
    reference: str = REFERENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
    fits: pd.DataFrame | None = None,
    validation_users: float | None = None,
    noise: float | None = None,
) -> pd.DataFrame:
    """Return Table 2: the paper's rows in the paper's order, then the others, best first.

    Args:
        metrics: columns of `metrics.parquet`.
        scores: by strategy, for the paired tests.
        trainings: columns strategy, trainings (adapters that the strategy needs by itself), training_seconds.
        reference: the strategy that the others are compared with.
        resamples: of the bootstrap and of the permutation test.
        seed: of both.
        fits: columns strategy, steps, stopped_by_patience (`account.fits`).
        validation_users: mean number of users in V_t, on which steps and merge weights are chosen.
        noise: noise floor, see `tables.noise_line`.

    Returns:
        `TABLE2`, and `USERS` where it is given. ci_low and ci_high bound delta, the paired difference of mean AUC from
        the reference; p_adjusted is Holm's over all rows; steps is the mean per adapter, stopped_by_patience the share
        of the row's adapters that the budget did not cut short (both NaN without `fits`).
    """
    table = mean_auc(metrics, scores, reference, resamples, seed, noise)
    table = table.merge(trainings[["strategy", "trainings", "training_seconds"]], on="strategy", how="left")
    if fits is None:
        fits = pd.DataFrame(columns=["strategy", "steps", "stopped_by_patience"])
    table = table.merge(fits.astype({"steps": float, "stopped_by_patience": float}), on="strategy", how="left")
    order = {name: i for i, name in enumerate(PAPER["ml-1m"])}
    rank = table["strategy"].map(lambda s: order.get(s, len(order)))
    table = table.assign(rank=rank).sort_values("rank", kind="stable", ignore_index=True)[TABLE2]
    return table if validation_users is None else table.assign(**{USERS: validation_users})


def by_slice(
    scores: Mapping[str, Runs],
    masks: Mapping[int, Mapping[str, np.ndarray]],
    reference: str = REFERENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
    noise: float | None = None,
) -> pd.DataFrame:
    """Return the table of mean AUC on slices of the tested samples: active and inactive users, new and returning ones.

    Args:
        scores: by strategy.
        masks: by tested period and slice, [rows of D_t] in their order (`evaluation.slices.user_slices`).
        reference: the strategy that the others are compared with, within each slice.
        resamples: of the bootstrap and of the permutation test.
        seed: of both.
        noise: noise floor, see `tables.noise_line`.

    Returns:
        columns slice, rows (samples of all periods), users, then those of `tables.mean_auc`; slices without samples are
        left out.

    Raises:
        LsatError: when scores and masks do not fit, or rows are on different samples.
    """
    blocks = []
    for name in dict.fromkeys(name for masks_of in masks.values() for name in masks_of):
        sliced: dict[str, dict[Key, Scored]] = {s: {} for s in scores}
        for strategy, runs in scores.items():
            for key, scored in runs.items():
                mask = masks.get(key.period, {}).get(name)
                if mask is None or len(mask) != len(scored.row):
                    raise LsatError(f"slice {name}: no mask for the {len(scored.row)} samples of period {key.period}")
                if mask.any():
                    sliced[strategy][key] = scored.only(mask)
        frame = pd.DataFrame(
            [
                {"strategy": s, "period": k.period, "seed": k.seed, "rows": len(v.row), "auc": auc(v.label, v.score)}
                for s, runs in sliced.items()
                for k, v in runs.items()
            ]
        )
        if frame.empty:
            continue
        table = mean_auc(frame, sliced, reference, resamples, seed, noise)
        one = {k.period: v for k, v in next(iter(sliced.values())).items()}
        table.insert(0, "slice", name)
        table.insert(1, "rows", sum(len(v.row) for v in one.values()))
        table.insert(2, "users", len(np.unique(np.concatenate([v.user for v in one.values()]))))
        blocks.append(table)
    return pd.concat(blocks, ignore_index=True)


def against(
    scores: Mapping[str, Runs], reference: str, resamples: int = RESAMPLES, seed: int = 0, noise: float | None = None
) -> pd.DataFrame:
    """Return how every row differs from one of them, best first: columns strategy to verdict.

    Args:
        scores: by strategy.
        reference: row that the others are compared with.
        resamples: of the bootstrap and of the permutation test.
        seed: of both.
        noise: noise floor, see `tables.noise_line`.

    Raises:
        LsatError: when the table has no such row.
    """
    if reference not in scores:
        raise LsatError(f"study.against: the table has no row {reference!r}; it has {', '.join(scores)}")
    found = compare_all(scores, reference, resamples, seed)
    rows = [[n, reference, c.difference, c.low, c.high, c.p, c.p_adjusted, c.words(noise)] for n, c in found.items()]
    names = ["strategy", "reference", "difference", "low", "high", "p", "p_adjusted", "verdict"]
    return pd.DataFrame(rows, columns=names).sort_values("difference", ascending=False, ignore_index=True)


def beside_paper(table: pd.DataFrame, log: str, reference: str = REFERENCE) -> pd.DataFrame:
    """Return the table with the paper's mean AUC and difference from full retraining beside ours.

    Args:
        table: `table2`.
        log: `ml-1m` or `amazon-book`; the numbers say nothing about other logs.
        reference: what the paper's difference is taken from.

    Raises:
        LsatError: for a log that the paper does not have.
    """
    if log not in PAPER:
        raise LsatError(f"study: the paper has no numbers for {log!r}; it has {', '.join(PAPER)}")
    paper = table["strategy"].map(lambda s: PAPER[log].get(s, np.nan)).astype(np.float64)
    return table.assign(paper_auc=paper, paper_delta=paper - PAPER[log][reference])


def frontier(table: pd.DataFrame, passes: Mapping[str, int]) -> pd.DataFrame:
    """Return what each strategy's AUC costs: trainings and their seconds (per seed), forward passes per score.

    Args:
        table: `table2`.
        passes: forward passes by strategy; rows that are not named need none.
    """
    shown = table[["strategy", "mean_auc", "trainings", "training_seconds"]].copy()
    shown["passes"] = [passes.get(s, 0) for s in shown["strategy"]]
    return shown


def against_ensemble(
    metrics: pd.DataFrame,
    scores: Mapping[str, Runs],
    ensemble: str,
    merged: Sequence[str],
    noise: float | None = None,
) -> pd.DataFrame:
    """Return how close single-pass merges come to the two-pass ensemble of the same adapters, closest first.

    Args:
        metrics: columns strategy, period, seed, auc.
        scores: by strategy.
        ensemble: name of the output ensemble.
        merged: names of the merges in parameter space.
        noise: noise floor, see `tables.noise_line`.

    Returns:
        columns strategy, score_gap (mean absolute difference of P(like)), rank_correlation (Spearman's, mean over
        periods and seeds), mean_auc, delta (from the ensemble), ci_low, ci_high, p_adjusted (Holm over the merges),
        verdict.
    """
    rows = metrics[metrics["strategy"].isin([ensemble, *merged])]
    table = mean_auc(rows, scores, ensemble, noise=noise)
    table = table[table["strategy"] != ensemble].reset_index(drop=True)
    near = {}
    for name in merged:
        pairs = [(scores[name][k].score, s.score) for k, s in scores[ensemble].items() if k in scores[name]]
        gap = float(np.mean([np.abs(a - b).mean() for a, b in pairs]))
        near[name] = gap, float(np.mean([spearmanr(a, b).statistic for a, b in pairs]))
    table["score_gap"] = [near[s][0] for s in table["strategy"]]
    table["rank_correlation"] = [near[s][1] for s in table["strategy"]]
    order = [
        "strategy",
        "score_gap",
        "rank_correlation",
        "mean_auc",
        "delta",
        "ci_low",
        "ci_high",
        "p_adjusted",
        "verdict",
    ]
    return table.sort_values("score_gap", kind="stable", ignore_index=True)[order]


def write(run_dir: Path, **tables: pd.DataFrame) -> list[Path]:
    """Write the study's tables where the report looks for them: `table2.csv`, and `study/<name>.csv` for the others.

    Args:
        run_dir: the run folder.
        tables: `table2`, `fig2` (of `curve_on`), `fig3` (of `warm_and_cold`), `fig4` (of `curve_on`), or any further
            name, which the report shows as a table.
    """
    written = []
    for name, table in tables.items():
        file = run_dir / "table2.csv" if name == "table2" else run_dir / "study" / f"{name}.csv"
        text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        written.append(write_atomic(file, text))
    return written


def sections(run: RunReader, noise: float | None = None) -> list[StudyPart]:
    """Return the study's parts that the run folder has; none for a plain replay.

    Args:
        run: the run folder.
        noise: noise floor, printed under every table of the study (`tables.noise_line`).
    """
    parts = []
    known = {"table2", "fig2", "fig3", "fig4"}
    table = run.table("table2")
    if table is not None:
        caption = f"delta is the difference from full retraining, with its interval. {noise_line(noise)}".rstrip()
        parts.append(StudyPart("Table 2", caption, table))
    drawers = {
        "fig2": lambda t: draw_curve(t, "fig2", "Every period's model on the last period (Fig. 2)"),
        "fig3": draw_warm_and_cold,
        "fig4": lambda t: draw_curve(t, "fig4", "The same on warm items (Fig. 4)"),
    }
    for name, draw in drawers.items():
        table = run.table(name)
        if table is not None and len(table):
            drawn = draw(table)
            parts.append(StudyPart(drawn.title, drawn.caption, drawn=drawn))
    for file in sorted((run.path / "study").glob("*.csv")):
        if file.stem not in known:
            parts.append(StudyPart(file.stem, noise_line(noise), pd.read_csv(file)))
    return parts
