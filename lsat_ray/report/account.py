"""Where the time went: the wall clock by stage, and what each strategy's training cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

STAGES = ("train", "score", "search", "encode", "publish", "serve", "backbone", "start-up", "report", "idle")
"""Stages by precedence: where several run at once, the wall clock is booked to the first of them."""

GOODPUT = ("train", "score")
"""Stages that count as useful work."""

REST = "unaccounted"
"""Name of the wall clock that no timed stage covers."""


def wall_clock(timings: pd.DataFrame) -> pd.DataFrame:
    """Book every second between the first start and the last end to one stage.

    Stages may overlap (several workers, a stage inside another): a moment belongs to the stage that comes first in
    `STAGES` (stages unknown here come last but for `idle`), and to `unaccounted` when none runs. A resumed run's pause
    thus shows as unaccounted.

    Args:
        timings: columns stage, start, seconds.

    Returns:
        columns stage, seconds (wall clock; they add up to the whole), share (of the whole), worker_seconds (the plain
        sum over rows, which counts parallel work once per worker).
    """
    rows = timings[timings["seconds"] > 0]
    if rows.empty:
        return pd.DataFrame(columns=["stage", "seconds", "share", "worker_seconds"])
    order = _order(rows["stage"].unique().tolist())
    start = rows["start"].to_numpy(np.float64)
    end = start + rows["seconds"].to_numpy(np.float64)
    edges = np.unique(np.concatenate([start, end]))
    length = np.diff(edges)
    free = np.ones(len(length), dtype=bool)
    booked: dict[str, float] = {}
    stage = rows["stage"].to_numpy()
    for name in order:
        running = np.zeros(len(edges), dtype=np.int64)
        mine = stage == name
        np.add.at(running, np.searchsorted(edges, start[mine]), 1)
        np.add.at(running, np.searchsorted(edges, end[mine]), -1)
        active = (np.cumsum(running)[:-1] > 0) & free
        booked[name] = float(length[active].sum())
        free &= ~active
    booked[REST] = float(length[free].sum())
    total = float(edges[-1] - edges[0])
    work = rows.groupby("stage")["seconds"].sum()
    return pd.DataFrame(
        [
            {"stage": n, "seconds": s, "share": s / total, "worker_seconds": float(work.get(n, 0.0))}
            for n, s in booked.items()
            if s > 0 or n in work
        ]
    )


def goodput(account: pd.DataFrame) -> float:
    """Return the share of the wall clock spent in training steps and scoring, NaN without a clock."""
    return float(account.loc[account["stage"].isin(GOODPUT), "share"].sum()) if len(account) else float("nan")


def per_period(timings: pd.DataFrame) -> pd.DataFrame:
    """Return worker-seconds by period and stage, stages as columns in the order of `STAGES`, period 0 left out."""
    rows = timings[timings["period"] > 0]
    table = rows.pivot_table(index="period", columns="stage", values="seconds", aggfunc="sum", fill_value=0.0)
    return table[_order(list(table.columns))] if len(table) else table


def training(
    timings: pd.DataFrame, ledger: list[dict[str, Any]], strategies: Iterable[str], seeds: int = 1
) -> pd.DataFrame:
    """Return what the adapters of each strategy cost to train.

    An adapter that several strategies share counts in full for each of them: it is what the strategy would cost alone.
    A stage `train` whose subject is a strategy's name counts for it directly; where the subject is an adapter's digest,
    the ledger says whose it is: records with `strategy` and `adapters` (digests, as a list or by role).

    Args:
        timings: columns stage, subject, seconds.
        ledger: the run's records.
        strategies: names of the strategies.
        seeds: the figures are per seed, so totals are divided by it.

    Returns:
        columns strategy, trainings, training_seconds; empty where nothing tells which strategy a training was for.
    """
    trained = timings[timings["stage"] == "train"].groupby("subject")["seconds"].sum()
    owned = _adapters(ledger, strategies)
    found = {name: sorted(d for d in {name} | digests if d in trained.index) for name, digests in owned.items()}
    return pd.DataFrame(
        [
            {"strategy": s, "trainings": len(d) / seeds, "training_seconds": float(trained[d].sum()) / seeds}
            for s, d in found.items()
            if d
        ],
        columns=["strategy", "trainings", "training_seconds"],
    )


def fits(
    ledger: list[dict[str, Any]], facts: Mapping[str, Mapping[str, Any]], strategies: Iterable[str]
) -> pd.DataFrame:
    """Return how long the adapters of each strategy were trained, and whether the budget cut them short.

    Args:
        ledger: the run's records; those with `strategy` and `adapters` say whose an adapter is.
        facts: by adapter digest: `steps` and `stopped_by` (`patience` or `budget`), as in the manifests.
        strategies: names of the strategies.

    Returns:
        columns strategy, steps (mean optimizer steps per adapter), stopped_by_patience (share of the adapters); NaN
        where no adapter says it.
    """
    rows = []
    for name, digests in _adapters(ledger, strategies).items():
        mine = [facts[d] for d in sorted(digests) if d in facts]
        steps = [f["steps"] for f in mine if f.get("steps") is not None]
        stopped = [f["stopped_by"] == "patience" for f in mine if f.get("stopped_by") is not None]
        means = (float(np.mean(v)) if v else float("nan") for v in (steps, stopped))
        rows.append((name, *means))
    return pd.DataFrame(rows, columns=["strategy", "steps", "stopped_by_patience"])


def kind_of(spec: Mapping[str, Any]) -> str:
    """Return in words how an adapter is trained, from the spec in its manifest; learning curves are drawn per kind."""
    if spec.get("kind") == "classical":
        return str(spec["model"])
    if spec.get("frozen"):
        return "cumulative"
    if spec.get("regulariser"):
        return "continued, regularised"
    if spec.get("replay"):
        return "continued, old samples replayed"
    if spec.get("init"):
        return "continued"
    return "fresh, one period" if len({period for period, _ in spec["train"]}) == 1 else "fresh, several periods"


def _adapters(ledger: list[dict[str, Any]], strategies: Iterable[str]) -> dict[str, set[str]]:
    """Return the digests of the adapters that each strategy needs by itself."""
    found: dict[str, set[str]] = {name: set() for name in strategies}
    for record in ledger:
        adapters = record.get("adapters") or []
        digests = adapters.values() if isinstance(adapters, dict) else adapters
        if record.get("strategy") in found:
            found[record["strategy"]].update(d for d in digests if isinstance(d, str))
    return found


def _order(stages: list[str]) -> list[str]:
    """Return stages by precedence, unknown ones just before `idle`."""
    unknown = sorted(set(stages) - set(STAGES))
    return [s for s in STAGES if s in stages and s != "idle"] + unknown + (["idle"] if "idle" in stages else [])
