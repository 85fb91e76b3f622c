"""The table: what each strategy reached on average, and whether that differs from full retraining."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from lsat_ray.errors import LsatError
from lsat_ray.evaluation.significance import RESAMPLES, Runs, compare_all, short

REFERENCE = "full-retraining"
"""The strategy that the others are compared with."""
NAIVE = ("like-share", "item-rate", "like-share+item-rate", "item-rate@period")
"""Rows that need no model."""
ORACLE = "oracle"
"""The best reachable scores, known for the synthetic stream; `oracle-...` rows know a part of the truth."""

COLUMNS = [
    "strategy",
    "mean_auc",
    "sd_seeds",
    "gauc",
    "log_loss",
    "accuracy",
    "ece",
    "delta",
    "ci_low",
    "ci_high",
    "p",
    "p_adjusted",
    "verdict",
    "periods",
    "seeds",
]


def mean_auc(
    metrics: pd.DataFrame,
    scores: Mapping[str, Runs] | None = None,
    reference: str = REFERENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
    noise: float | None = None,
) -> pd.DataFrame:
    """Return one row per strategy, best first (methods.md 0.1: the unweighted mean of the per-period AUCs).

    All rows are on the same samples: the periods that every row was tested on.

    Args:
        metrics: columns strategy, period, seed, auc and where known gauc, log_loss, accuracy, ece, rows, positives.
        scores: by strategy; those that are there are compared with the reference.
        reference: the strategy that the others are compared with.
        resamples: of the bootstrap and of the permutation test.
        seed: of both.
        noise: noise floor, see `noise_line`.

    Returns:
        `COLUMNS`. mean_auc: mean over periods of the mean over seeds. sd_seeds: standard deviation over seeds of the
        mean over periods, NaN with one seed. gauc (AUC within users), log_loss, accuracy, ece: means over periods and
        seeds. delta, ci_low, ci_high: paired difference of mean AUC and its interval; p, p_adjusted (Holm over all
        strategies but the oracles) and verdict in words; NaN and "" where there are no scores. periods and seeds: how
        many of each.

    Raises:
        LsatError: when no period was tested for every row, or rows were tested on different samples of a period.
    """
    metrics = _on_the_same_samples(metrics)
    by_period = metrics.groupby(["strategy", "period"])["auc"].mean()
    by_seed = metrics.groupby(["strategy", "seed"])["auc"].mean()
    means = by_period.groupby("strategy").mean()
    tested = set(metrics["period"])
    known = {
        s: {k: v for k, v in scores[s].items() if k.period in tested}
        for s in means.index
        if scores and s in scores and not is_oracle(s)
    }
    known = {s: runs for s, runs in known.items() if runs}
    found = compare_all(known, reference, resamples, seed) if reference in known and len(known) > 1 else {}
    table = pd.DataFrame({"mean_auc": means, "sd_seeds": by_seed.groupby("strategy").std()})
    for column in ("gauc", "log_loss", "accuracy", "ece"):
        table[column] = metrics.groupby("strategy")[column].mean() if column in metrics else np.nan
    fields = {"delta": "difference", "ci_low": "low", "ci_high": "high", "p": "p", "p_adjusted": "p_adjusted"}
    for column, field in fields.items():
        table[column] = pd.Series({s: getattr(c, field) for s, c in found.items()}, dtype=np.float64)
    words = {s: c.words(noise) for s, c in found.items()} | {reference: "reference", ORACLE: "upper bound"}
    table["verdict"] = [words.get(s, "oracle" if is_oracle(s) else "") for s in table.index]
    table["periods"] = metrics.groupby("strategy")["period"].nunique()
    table["seeds"] = metrics.groupby("strategy")["seed"].nunique()
    return table.reset_index().sort_values("mean_auc", ascending=False, kind="stable", ignore_index=True)[COLUMNS]


def is_oracle(strategy: str) -> bool:
    """Say whether a row knows the truth of the synthetic stream, or a part of it: a bound, not a competitor."""
    return strategy == ORACLE or strategy.startswith(f"{ORACLE}-")


def has_model(strategy: str) -> bool:
    """Say whether a row has a model; naive rows and oracles have none."""
    return strategy not in NAIVE and not is_oracle(strategy)


def chosen_coefficients(tried: pd.DataFrame) -> pd.Series:
    """Return the coefficient that every search chose, by seed, period and strategy.

    Args:
        tried: one row per coefficient: columns seed, period, strategy, coefficient, share (in what was chosen).
    """
    keys = ["seed", "period", "strategy"]
    return tried.assign(coefficient=tried["share"] * tried["coefficient"]).groupby(keys)["coefficient"].sum()


def is_difference(verdict: str) -> bool:
    """Say whether a verdict of the table states a difference."""
    return verdict.startswith(("better by", "worse by"))


def noise_line(noise: float | None) -> str:
    """Return the line under a table that says which differences are none, empty where the noise was not measured.

    Args:
        noise: spread of mean AUC over runs whose start differs by 1e-6, which rounding alone can cause.
    """
    if noise is None:
        return ""
    spread = "noise floor: spread over runs that differ by rounding alone"
    return f"Differences below {short(noise)} are not differences ({spread})."


def headline(table: pd.DataFrame, reference: str = REFERENCE) -> str:
    """Say in words which row has the highest mean AUC, naive ones included, and whether it beats the reference."""
    rows = table[~table["strategy"].map(is_oracle) & table["mean_auc"].notna()]
    if rows.empty:
        return "No strategy was measured."
    best = rows.iloc[0]
    span = f"{_count(best['periods'], 'tested period')}, {_count(best['seeds'], 'seed')}"
    said = f"{best['strategy']} has the highest mean AUC, {short(best['mean_auc'])} ({span})."
    models = rows[rows["strategy"].map(has_model)]
    if best["strategy"] in NAIVE and len(models):
        first = models.iloc[0]
        said += f" It needs no model; the best model is {first['strategy']}, {short(first['mean_auc'])}."
    if best["strategy"] == reference:
        others = rows[(rows["verdict"] != "") & (rows["strategy"] != reference)]
        equals = [r["strategy"] for r in others.to_dict("records") if not is_difference(r["verdict"])]
        return said + (f" No significant difference was found between it and {', '.join(equals)}." if equals else "")
    if not best["verdict"]:
        return said + f" It was not compared with {reference}: the scores of one of them are missing."
    return said + f" Against {reference}: {best['verdict']}."


def rich_table(table: pd.DataFrame, title: str = "", reference: str = REFERENCE, noise: float | None = None) -> Table:
    """Return the table for a terminal."""
    result = Table(
        title=title or None,
        title_justify="left",
        caption=noise_line(noise) or None,
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    head, *rows = _cells(table, reference)
    for i, name in enumerate(head):
        last = i == len(head) - 1
        result.add_column(name, justify="right" if i > 0 and not last else "left", no_wrap=not last, overflow="fold")
    for row in rows:
        result.add_row(*row, style=None if has_model(row[0]) else "dim")
    return result


def plain_table(table: pd.DataFrame, title: str = "", reference: str = REFERENCE, noise: float | None = None) -> str:
    """Return the table as plain text, one line per strategy, columns aligned."""
    rows = _cells(table, reference)
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([row[0].ljust(width[0]), *(c.rjust(w) for c, w in zip(row[1:-1], width[1:], strict=True)), row[-1]])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [title, *lines, noise_line(noise)] if line)


def show(
    table: pd.DataFrame,
    console: Console | None = None,
    title: str = "",
    reference: str = REFERENCE,
    noise: float | None = None,
) -> None:
    """Write the table to a console: laid out on a terminal, plain aligned lines elsewhere."""
    console = console or Console()
    if console.is_terminal:
        console.print(rich_table(table, title, reference, noise), markup=False, highlight=False)
    else:
        console.file.write(plain_table(table, title, reference, noise) + "\n")


def _cells(table: pd.DataFrame, reference: str) -> list[list[str]]:
    """Return head and rows of the terminal's table."""
    head = ["strategy", "mean AUC", "GAUC", "log-loss", "accuracy", f"against {reference} (95 % interval)"]
    return [head] + [
        [
            r["strategy"],
            short(r["mean_auc"]),
            short(r["gauc"]),
            short(r["log_loss"]),
            short(r["accuracy"], 3),
            r["verdict"],
        ]
        for r in table.to_dict("records")
    ]


def _on_the_same_samples(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the metrics of the periods that every strategy was tested on."""
    rows = metrics.groupby("period")["strategy"].nunique()
    shared = rows.index[rows == metrics["strategy"].nunique()]
    if len(metrics) and shared.empty:
        raise LsatError("table: no period was tested for every row; leave out the row that was tested on none of them")
    kept = metrics[metrics["period"].isin(shared)]
    for column in ("rows", "positives"):
        if column in kept and (kept.groupby("period")[column].nunique() > 1).any():
            raise LsatError(f"table: the rows differ in `{column}` of a period, so in their samples; score them again")
    return kept


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
