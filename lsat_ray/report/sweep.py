"""Studies that differ in one setting, side by side: drift, capacity, the length of a period, the size of m."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lsat_ray.errors import LsatError
from lsat_ray.files import write_atomic
from lsat_ray.report import cross
from lsat_ray.report.reader import RunReader
from lsat_ray.report.style import GREY, Drawn, drawing, label_ends, look, save
from lsat_ray.report.tables import REFERENCE, has_model, mean_auc, noise_line

SWEEP = ["value", "against", "strategy", "mean_auc", "delta", "ci_low", "ci_high", "p_adjusted", "verdict"]
"""First columns of `table`."""


def table(
    runs: Mapping[Any, RunReader], against: Sequence[str] = (REFERENCE,), noise: float | None = None
) -> pd.DataFrame:
    """Return the strategies of finished studies, one block per value of the setting and reference.

    Args:
        runs: study folders by value of the setting.
        against: strategies that the others are compared with (`tables.mean_auc`, Holm within a block); `name@2` is
            that row of the study whose value is twice as large, where there is one.
        noise: noise floor, see `tables.noise_line`.

    Returns:
        `SWEEP`, then trainings, training_seconds (per seed) and passes (forward passes per score) where known.

    Raises:
        LsatError: when a folder has no metrics or misses a reference.
    """
    blocks = []
    for value, run in runs.items():
        if run.metrics is None:
            raise LsatError(f"{run.path}: no metrics.parquet; run the study first")
        cost = run.table("frontier")
        for reference in against:
            name, at, _ = reference.partition("@")
            other = runs.get(_partner(value, reference)) if at else run
            if other is None:
                continue
            if other.metrics is None or name not in set(other.metrics["strategy"]):
                raise LsatError(f"{other.path}: no row {name!r} to compare with; add it to `strategies`")
            metrics, scores = run.metrics, run.scores
            if at:
                theirs = other.metrics[other.metrics["strategy"] == name].assign(strategy=reference)
                metrics = pd.concat([metrics, theirs], ignore_index=True)
                scores = {**scores, reference: other.scores[name]}
            block = mean_auc(metrics, scores, reference, noise=noise).assign(value=value, against=reference)[SWEEP]
            if cost is not None:
                block = block.merge(cost.drop(columns="mean_auc"), on="strategy", how="left")
            blocks.append(block)
    return pd.concat(blocks, ignore_index=True)


def check(values: Sequence[Any], against: Sequence[str]) -> None:
    """Refuse a reference `name@factor` that no value has.

    Raises:
        LsatError: when the factor or a value is no number, or no value times the factor is among the values.
    """
    for reference in against:
        if "@" in reference and not any(_partner(v, reference) in values for v in values):
            raise LsatError(f"--against {reference}: none of the values {list(values)} has its multiple among them")


def _partner(value: Any, reference: str) -> float:
    try:
        return float(value) * float(reference.partition("@")[2])
    except ValueError as error:
        raise LsatError(
            f"--against {reference}: {value!r} times that is no number; give name@2 over numbers"
        ) from error


def write(rows: pd.DataFrame, setting: str, folder: Path, noise: float | None = None) -> list[Drawn]:
    """Write `sweep.csv` and the figures of it into a folder; return the figures."""
    write_atomic(folder / "sweep.csv", rows.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    drawn = [draw_auc(rows, setting), draw_differences(rows, setting, noise)]
    for figure in drawn:
        save(figure, folder)
    return drawn


def draw_auc(rows: pd.DataFrame, setting: str) -> Drawn:
    """Draw mean AUC over the setting, one line per strategy."""
    once = rows[rows["against"] == rows["against"].iloc[0]]
    place, names = _places(once["value"])
    lines = once.assign(x=once["value"].map(place), auc=once["mean_auc"])
    drawn = cross.draw_curve(lines, "sweep_auc", f"Mean AUC over {setting}", "x", setting)
    if names:
        drawn.figure.axes[0].set_xticks(range(len(names)), names)
    return Drawn(drawn.name, drawn.title, "Mean over tested periods and seeds.", drawn.figure, once)


def draw_differences(rows: pd.DataFrame, setting: str, noise: float | None = None) -> Drawn:
    """Draw each strategy's difference from each reference over the setting, with 95 % intervals."""
    references = list(dict.fromkeys(rows["against"]))
    shown = rows[rows["strategy"].map(has_model) & (rows["strategy"] != "frozen") & rows["delta"].notna()]
    place, names = _places(rows["value"])
    with drawing():
        figure = Figure(figsize=(8.4, 3.0 * len(references)))
        panels = figure.subplots(len(references), 1, squeeze=False, sharex=True)[:, 0]
        figure.subplots_adjust(left=0.09, right=0.78, top=0.95, bottom=0.17 / len(references), hspace=0.22)
        for axes, reference in zip(panels, references, strict=True):
            part = shown[shown["against"] == reference]
            strategies = sorted(part["strategy"].unique())
            looks = {s: look(s, i) for i, s in enumerate(strategies)}
            ends = {}
            for i, s in enumerate(strategies):
                mine = part[part["strategy"] == s]
                x = mine["value"].map(place).to_numpy(np.float64)
                y, low, high = (mine[c].to_numpy(np.float64) for c in ("delta", "ci_low", "ci_high"))
                width = (max(place.values()) - min(place.values())) or 1.0
                shift = (i - (len(strategies) - 1) / 2) * 0.008 * width
                axes.errorbar(x + shift, y, yerr=[y - low, high - y], capsize=2, elinewidth=0.8, **looks[s])
                if len(x):
                    ends[s] = (float(x[-1]), float(y[-1]))
            axes.axhline(0.0, color=GREY, lw=0.8)
            if noise is not None:
                axes.axhspan(-noise, noise, color="#eeeeee", lw=0)
            axes.set_ylabel("difference of AUC")
            axes.set_title(f"against {reference}")
            axes.set_ylim(*axes.get_ylim())
            label_ends(axes, ends, looks)
        if names:
            panels[-1].set_xticks(range(len(names)), names)
        panels[-1].set_xlabel(setting)
    caption = f"Paired differences of mean AUC with 95 % bootstrap intervals by user. {noise_line(noise)}".rstrip()
    return Drawn("sweep_differences", f"Differences over {setting}", caption, figure, shown)


def _places(values: pd.Series) -> tuple[dict[Any, float], list[str]]:
    """Return where each value stands on the axis, and the tick names; numbers over a wide range are spaced evenly."""
    distinct = list(dict.fromkeys(values))
    if all(isinstance(v, int | float) for v in distinct) and not 0 < 8 * min(distinct) <= max(distinct):
        return {v: float(v) for v in distinct}, []
    return {v: float(i) for i, v in enumerate(distinct)}, [str(v) for v in distinct]
