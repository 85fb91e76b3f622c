"""The LSAT paper's evaluation as tables and figures: Table 2 and Figures 2 to 5 (methods.md 2 and 8).

Figures 2, 3 and 4 are made from **cross scores**: one frame with a row per scored sample and the columns

    strategy  str    name, with the backbone's before it where several are compared (`mf/full-retraining`)
    seed      int
    trained   int    t, the last period that the model has learnt from (0: from none)
    tested    int    the period that the row is of
    item      int    target item
    label     int    0 or 1
    score     float  higher for a likelier like
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import spearmanr

from lsat_ray.errors import LsatError
from lsat_ray.evaluation import metrics as measure
from lsat_ray.evaluation.significance import Runs
from lsat_ray.files import write_atomic
from lsat_ray.report.folder import RunFolder
from lsat_ray.report.style import BLUE, ORANGE, Drawn, drawing, label_ends, look
from lsat_ray.report.tables import REFERENCE, mean_auc

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
]
"""Columns of `table2.csv`."""

CROSS = ["strategy", "seed", "trained", "tested", "item", "label", "score"]
"""Columns of cross scores that are needed."""


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
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return Table 2: the paper's rows in the paper's order, then the others, best first.

    Args:
        metrics: columns strategy, period, seed, auc.
        scores: by strategy, for the paired tests.
        trainings: columns strategy, trainings (adapters that the strategy needs by itself), training_seconds.
        reference: the strategy that the others are compared with.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `TABLE2`. ci_low and ci_high bound delta, the paired difference of mean AUC from the reference;
        p_adjusted is Holm's over all rows.
    """
    table = mean_auc(metrics, scores, reference, resamples, seed)
    table = table.merge(trainings[["strategy", "trainings", "training_seconds"]], on="strategy", how="left")
    order = {name: i for i, name in enumerate(PAPER["ml-1m"])}
    rank = table["strategy"].map(lambda s: order.get(s, len(order)))
    return table.assign(rank=rank).sort_values("rank", kind="stable", ignore_index=True)[TABLE2]


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
    """Return what each strategy's AUC costs: trainings and their seconds (a seed), forward passes a score.

    Args:
        table: `table2`.
        passes: forward passes by strategy; rows that are not named need none.
    """
    shown = table[["strategy", "mean_auc", "trainings", "training_seconds"]].copy()
    shown["passes"] = [passes.get(s, 0) for s in shown["strategy"]]
    return shown


def against_ensemble(
    metrics: pd.DataFrame, scores: Mapping[str, Runs], ensemble: str, merged: Sequence[str]
) -> pd.DataFrame:
    """Return how close single-pass merges come to the two-pass ensemble of the same adapters, closest first.

    Args:
        metrics: columns strategy, period, seed, auc.
        scores: by strategy.
        ensemble: name of the output ensemble.
        merged: names of the merges in parameter space.

    Returns:
        columns strategy, score_gap (mean absolute difference of P(like)), rank_correlation (Spearman's, mean over
        periods and seeds), mean_auc, delta (from the ensemble), ci_low, ci_high, p_adjusted (Holm over the merges),
        verdict.
    """
    rows = metrics[metrics["strategy"].isin([ensemble, *merged])]
    table = mean_auc(rows, scores, ensemble)
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


def curve_on(cross: pd.DataFrame, tested: int, items: np.ndarray | None = None) -> pd.DataFrame:
    """Return the AUC on one period of every period's model (Fig. 2), or on some of its rows (Fig. 4).

    Args:
        cross: cross scores.
        tested: the period that every model is tested on, the last one in the paper.
        items: keep rows of these target items only; Fig. 4 takes the targets of D_1..D_10
            (`evaluation.warmcold.seen_items`), a fixed set for all models, where the paper's code lets it grow.

    Returns:
        columns strategy, seed, trained, auc, rows; models that have learnt from the tested period are left out.

    Raises:
        LsatError: when a column is missing.
    """
    _needs(cross)
    rows = cross[(cross["tested"] == tested) & (cross["trained"] < tested)]
    if items is not None:
        rows = rows[rows["item"].isin(items)]
    return _aucs(rows, ["strategy", "seed", "trained"])


def warm_and_cold(cross: pd.DataFrame, trained: int, warm: np.ndarray) -> pd.DataFrame:
    """Return the AUC on warm and on cold items of one period's model on all later periods together (Fig. 3).

    Args:
        cross: cross scores.
        trained: the model's period, 15 of 20 in the paper.
        warm: target items of D_1..D_trained (`evaluation.warmcold.seen_items`).

    Returns:
        columns strategy, seed, split (`warm` or `cold`), auc, rows.

    Raises:
        LsatError: when a column is missing.
    """
    _needs(cross)
    rows = cross[(cross["trained"] == trained) & (cross["tested"] > trained)]
    split = np.where(rows["item"].isin(warm), "warm", "cold")
    return _aucs(rows.assign(split=split), ["strategy", "seed", "split"])


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


def sections(run: RunFolder) -> list[StudyPart]:
    """Return the study's parts that the run folder has; none for a plain replay."""
    parts = []
    known = {"table2", "fig2", "fig3", "fig4"}
    table = run.table("table2")
    if table is not None:
        parts.append(StudyPart("Table 2", "delta is the difference from full retraining, with its interval.", table))
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
            parts.append(StudyPart(file.stem, table=pd.read_csv(file)))
    return parts


def draw_curve(
    table: pd.DataFrame, name: str, title: str, x: str = "trained", label: str = "last period learnt from"
) -> Drawn:
    """Draw the AUC of every strategy over a number: the update period (Fig. 2 and 4), drift strength, a lag.

    Args:
        table: columns strategy, seed, auc and `x`; the line is the mean over seeds, the band their range.
        name: file name of the figure.
        title: of the figure.
        x: column of the horizontal axis.
        label: of that axis.
    """
    groups = table.groupby(["strategy", x])["auc"]
    mean, low, high = (getattr(groups, f)().unstack("strategy") for f in ("mean", "min", "max"))
    with drawing():
        height = max(3.4, 0.19 * mean.shape[1])
        figure = Figure(figsize=(8.4, height))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.08, right=0.78, top=1 - 0.1 / height, bottom=0.48 / height)
        looks = {s: look(str(s), i) for i, s in enumerate(mean.columns)}
        for s in mean.columns:
            axes.plot(mean.index, mean[s], **looks[s])
            axes.fill_between(mean.index, low[s], high[s], color=looks[s]["color"], alpha=0.12, lw=0)
        axes.set_xlabel(label)
        axes.set_ylabel("AUC")
        if pd.api.types.is_integer_dtype(table[x]):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(*axes.get_ylim())
        last = {s: mean[s].dropna() for s in mean.columns}
        label_ends(axes, {s: (float(v.index[-1]), float(v.iloc[-1])) for s, v in last.items() if len(v)}, looks)
    return Drawn(name, title, "Mean over seeds; the band is their range.", figure, table)


def draw_warm_and_cold(table: pd.DataFrame) -> Drawn:
    """Draw Fig. 3: AUC on warm and on cold items, a row per strategy.

    Args:
        table: columns strategy, seed, split, auc, rows.
    """
    wide = table.pivot_table(index="strategy", columns="split", values="auc", aggfunc="mean")
    wide = wide.reindex(columns=["warm", "cold"]).sort_values("warm")
    rows = table.groupby("split")["rows"].max()
    with drawing():
        height = 1.0 + 0.26 * len(wide)
        figure = Figure(figsize=(8.4, height))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.22, right=0.75, top=1 - 0.08 / height, bottom=0.48 / height)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.hlines(range(len(wide)), wide["cold"], wide["warm"], color="#cccccc", lw=2)
        for split, colour, marker in (("warm", ORANGE, "o"), ("cold", BLUE, "s")):
            label = f"{split} items ({int(rows.get(split, 0))} rows)"
            axes.plot(wide[split], range(len(wide)), marker, color=colour, ms=6, label=label)
        axes.axvline(0.5, color="#999999", lw=0.8, ls=":")
        axes.set_yticks(range(len(wide)), [str(s) for s in wide.index])
        axes.set_ylim(-0.6, len(wide) - 0.4)
        axes.set_xlabel("AUC (dotted: chance)")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8)
    caption = "An item is warm when it was a target in a period that the model has learnt from."
    return Drawn("fig3", "Warm and cold items (Fig. 3)", caption, figure, table)


def _aucs(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    found = [
        dict(zip(keys, key, strict=True))
        | {"auc": measure.auc(g["label"].to_numpy(), g["score"].to_numpy()), "rows": len(g)}
        for key, g in rows.groupby(keys, sort=True)
    ]
    return pd.DataFrame(found, columns=[*keys, "auc", "rows"])


def _needs(cross: pd.DataFrame) -> None:
    missing = [c for c in CROSS if c not in cross]
    if missing:
        raise LsatError(f"study: the cross scores have no column {', '.join(missing)}")
