"""The table: what each strategy reached on average, and whether that differs from full retraining."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from lsat_ray.evaluation.significance import Runs, compare_all, short, short_p

REFERENCE = "full-retraining"
"""The strategy that the others are compared with."""
NAIVE = ("like-share", "item-rate", "like-share+item-rate")
"""Rows that need no model."""
ORACLE = "oracle"
"""The best reachable scores, known for the synthetic stream: a bound and no contestant."""

COLUMNS = [
    "strategy",
    "mean_auc",
    "sd_seeds",
    "log_loss",
    "accuracy",
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
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return one row per strategy, best first (methods.md 0.1: the unweighted mean of the per-period AUCs).

    Args:
        metrics: columns strategy, period, seed, auc and where known log_loss, accuracy.
        scores: by strategy; those that are there are compared with the reference.
        reference: the strategy that the others are compared with.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `COLUMNS`. mean_auc: mean over periods of the mean over seeds. sd_seeds: standard deviation over seeds of the
        mean over periods, NaN with one seed. delta, ci_low, ci_high: paired difference of mean AUC and its bootstrap
        interval; p, p_adjusted (Holm over all strategies but the oracle) and verdict in words; NaN and "" where there
        are no scores. periods and seeds: how many of each.
    """
    by_period = metrics.groupby(["strategy", "period"])["auc"].mean()
    by_seed = metrics.groupby(["strategy", "seed"])["auc"].mean()
    means = by_period.groupby("strategy").mean()
    known = {s: scores[s] for s in means.index if scores and s in scores and s != ORACLE}
    tested = {k.period for k in known.get(reference, {})}
    known = {s: runs for s, runs in known.items() if tested & {k.period for k in runs}}
    found = compare_all(known, reference, resamples, seed) if reference in known and len(known) > 1 else {}
    table = pd.DataFrame({"mean_auc": means, "sd_seeds": by_seed.groupby("strategy").std()})
    for column in ("log_loss", "accuracy"):
        table[column] = metrics.groupby("strategy")[column].mean() if column in metrics else np.nan
    fields = {"delta": "difference", "ci_low": "low", "ci_high": "high", "p": "p", "p_adjusted": "p_adjusted"}
    for column, field in fields.items():
        table[column] = pd.Series({s: getattr(c, field) for s, c in found.items()}, dtype=np.float64)
    words = {s: c.verdict for s, c in found.items()} | {reference: "reference", ORACLE: "upper bound"}
    table["verdict"] = [words.get(s, "") for s in table.index]
    table["periods"] = metrics.groupby("strategy")["period"].nunique()
    table["seeds"] = metrics.groupby("strategy")["seed"].nunique()
    return table.reset_index().sort_values("mean_auc", ascending=False, kind="stable", ignore_index=True)[COLUMNS]


def headline(table: pd.DataFrame, reference: str = REFERENCE) -> str:
    """Say in words which strategy has the highest mean AUC and whether it differs from the reference."""
    contestants = table[~table["strategy"].isin([*NAIVE, ORACLE]) & table["mean_auc"].notna()]
    if contestants.empty:
        return "No strategy was measured."
    best = contestants.iloc[0]
    span = f"{_count(best['periods'], 'tested period')}, {_count(best['seeds'], 'seed')}"
    first = f"{best['strategy']} has the highest mean AUC, {short(best['mean_auc'])} ({span})."
    if best["strategy"] == reference:
        rivals = contestants[contestants["verdict"].str.startswith("no difference")]["strategy"].tolist()
        return first + (f" No difference was found between it and {', '.join(rivals)}." if rivals else "")
    if not best["verdict"]:
        return first + f" It was not compared with {reference}: the scores of one of them are missing."
    if best["verdict"].startswith("no difference"):
        return first + f" Against {reference} that is {best['verdict']}."
    return first + f" Compared with {reference} it is {best['verdict']}."


def rich_table(table: pd.DataFrame, title: str = "", reference: str = REFERENCE) -> Table:
    """Return the table for a terminal."""
    result = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    result.add_column("strategy", no_wrap=True)
    for name in ("mean AUC", "log-loss", "accuracy"):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column(f"against {reference} (95 % interval)", overflow="fold")
    for row in table.to_dict("records"):
        style = "dim" if row["strategy"] in (*NAIVE, ORACLE) else None
        numbers = [short(row["mean_auc"]), short(row["log_loss"]), short(row["accuracy"], 3)]
        result.add_row(row["strategy"], *numbers, row["verdict"], style=style)
    return result


def plain_table(table: pd.DataFrame, title: str = "", reference: str = REFERENCE) -> str:
    """Return the table as plain text, one line a strategy, columns aligned."""
    head = ["strategy", "mean AUC", "log-loss", "accuracy", f"against {reference} (95 % interval)"]
    rows = [head] + [
        [r["strategy"], short(r["mean_auc"]), short(r["log_loss"]), short(r["accuracy"], 3), r["verdict"]]
        for r in table.to_dict("records")
    ]
    width = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([row[0].ljust(width[0]), *(row[i].rjust(width[i]) for i in (1, 2, 3)), row[4]]).rstrip()
        for row in rows
    ]
    return "\n".join([title, *lines] if title else lines)


def show(table: pd.DataFrame, console: Console | None = None, title: str = "", reference: str = REFERENCE) -> None:
    """Write the table to a console: laid out on a terminal, plain aligned lines elsewhere."""
    console = console or Console()
    if console.is_terminal:
        console.print(rich_table(table, title, reference), markup=False, highlight=False)
    else:
        console.file.write(plain_table(table, title, reference) + "\n")


def comparison(row: Mapping[str, float]) -> str:
    """Write a row's paired difference as `+.0070 [+.0031, +.0109], p = .002`."""
    if np.isnan(row["delta"]):
        return "-"
    span = f"[{short(row['ci_low'], sign=True)}, {short(row['ci_high'], sign=True)}]"
    return f"{short(row['delta'], sign=True)} {span}, p {short_p(row['p_adjusted'])}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
