"""The figures of a run. Each function returns a `Drawn`: the figure, its title, its caption and its data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lsat_ray.config.running import Select
from lsat_ray.evaluation.significance import short
from lsat_ray.report import account
from lsat_ray.report.reader import RunReader
from lsat_ray.report.style import (
    BLUE,
    GREY,
    ORANGE,
    STAGE_COLOURS,
    Drawn,
    drawing,
    familiar,
    label_ends,
    label_points,
    look,
    save,
)
from lsat_ray.report.tables import ORACLE, REFERENCE, chosen_coefficients, has_model, is_difference

CROWD = 14
"""More strategies than that cannot be told apart as lines."""


def draw(run: RunReader, table: pd.DataFrame | None, noise: float | None = None) -> tuple[list[Drawn], list[str]]:
    """Draw everything that the run has files for.

    Args:
        run: the run folder.
        table: `tables.mean_auc` of it.
        noise: noise floor, see `tables.noise_line`.

    Returns:
        the figures in the report's order, and one line per figure that is left out.
    """
    drawn: list[Drawn] = []
    missing: list[str] = []
    if run.metrics is None or table is None or run.metrics.empty:
        missing.append("AUC per period: the run has no metrics.parquet")
    else:
        drawn.append(auc_per_period(run.metrics))
        if table["delta"].notna().any():
            drawn.append(differences(table, noise=noise))
        else:
            missing.append(f"Differences from {REFERENCE}: scores of {REFERENCE} and of another strategy are needed")
    if run.coefficients is None or run.coefficients.empty:
        missing.append("Chosen coefficients: the run has no search/coefficients.parquet")
    else:
        shares = run.coefficients.groupby("strategy")["coefficient"].transform("max") <= 1  # a half-life is no weight
        if shares.any():
            drawn.append(coefficients(run.coefficients[shares], run.select))
    if curves := learning_curves(run.manifests):
        drawn.append(curves)
    else:
        missing.append("Learning curves: no adapter's manifest holds the validations of its training")
    if run.timings is None or run.timings.empty:
        missing.append("Cost per period, wall clock and frontier: the run has no timings.parquet")
        return drawn, missing
    if (run.timings["period"] > 0).any():
        drawn.append(cost_per_period(run.timings))
    drawn.append(wall_clock(run.timings))
    if table is not None:
        seeds = run.metrics["seed"].nunique() if run.metrics is not None else 1
        cost = account.training(run.timings, run.ledger, table["strategy"], seeds)
        if cost.empty:
            missing.append("Frontier: neither timings nor ledger say which strategy an adapter was trained for")
        else:
            drawn.append(frontier(table.merge(cost, on="strategy", how="left")))
    return drawn, missing


def write(drawn: Sequence[Drawn], folder: Path) -> None:
    """Save every figure as SVG and PNG with its data as CSV beside it."""
    for one in drawn:
        save(one, folder)


def auc_per_period(metrics: pd.DataFrame, reference: str = REFERENCE) -> Drawn:
    """Draw the AUC on every tested period (methods.md 2, Fig. 5), and below it the difference from the reference.

    Args:
        metrics: columns strategy, period, seed, auc; seeds are averaged.
        reference: strategy whose AUC is subtracted in the lower panel (which is left out where it is missing).
    """
    wide = metrics.pivot_table(index="period", columns="strategy", values="auc", aggfunc="mean")
    order = wide.mean().sort_values(ascending=False).index.tolist()
    adapted = [s for s in order if has_model(s) and s != "frozen"]
    panels = reference in adapted and len(adapted) > 1
    named = order if len(order) <= CROWD else [s for s in order if familiar(s)]
    with drawing():
        ratios = [max(3.2, 0.19 * len(named)), *([max(2.2, 0.19 * len(adapted))] if panels else [])]
        height = sum(ratios) + 0.6
        figure = Figure(figsize=(8.4, height))
        stack = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        figure.subplots_adjust(left=0.08, right=0.78, top=1 - 0.3 / height, bottom=0.45 / height, hspace=0.14)
        stack[0].plot(wide.index, wide[[s for s in order if s not in named]], color="#cccccc", lw=0.8)
        _lines(stack[0], wide[named], order)
        stack[0].set_title("AUC on the tested period")
        if panels:
            delta = wide[adapted].sub(wide[reference], axis=0)
            if len(order) <= CROWD:
                _lines(stack[1], delta, order)
            else:
                _tiles(stack[1], delta)
            stack[1].set_title(f"AUC minus that of {reference}")
        stack[-1].set_xlabel("tested period")
    data = metrics[[c for c in ("strategy", "period", "seed", "auc", "auc_low", "auc_high") if c in metrics]]
    caption = "Every strategy is scored on a period before it may learn from it. Seeds are averaged."
    if ORACLE in order:
        caption += " The oracle knows the true probabilities: nothing can be expected to pass it."
    if panels and len(order) > CROWD:
        caption += " Tiles: purple is better than the reference, orange worse; the number is the mean."
    return Drawn("auc_per_period", "AUC per period", caption, figure, data)


def differences(table: pd.DataFrame, reference: str = REFERENCE, noise: float | None = None) -> Drawn:
    """Draw every strategy's difference of mean AUC from the reference with its interval.

    Args:
        table: `tables.mean_auc`.
        reference: what was subtracted.
        noise: noise floor, drawn as a band around zero.
    """
    rows = table[table["delta"].notna()].sort_values("delta", ignore_index=True)
    with drawing():
        height = 0.9 + 0.24 * len(rows)
        figure = Figure(figsize=(8.4, height))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.22, right=0.97, top=1 - 0.08 / height, bottom=0.55 / height)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.axvline(0, color="#444444", lw=0.8)
        if noise is not None:
            axes.axvspan(-noise, noise, color="#eeeeee", lw=0)
        for y, row in enumerate(rows.to_dict("records")):
            sure = is_difference(row["verdict"])
            colour = BLUE if sure else GREY
            axes.plot([row["ci_low"], row["ci_high"]], [y, y], color=colour, lw=1.6)
            axes.plot(row["delta"], y, "o", color=colour, ms=5, mfc=colour if sure else "white")
        axes.set_yticks(range(len(rows)), rows["strategy"])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(f"mean AUC minus that of {reference}")
    caption = (
        "95 % intervals from a paired bootstrap by user. Filled: different after Holm's correction at .05; hollow: not "
        "significant."
    )
    if noise is not None:
        caption += " Within the grey band, the noise floor, a difference is none."
    columns = ["strategy", "delta", "ci_low", "ci_high", "p", "p_adjusted", "verdict"]
    return Drawn("differences", f"Difference from {reference}", caption, figure, rows[columns])


def coefficients(tried: pd.DataFrame, select: Select) -> Drawn:
    """Draw which coefficient was chosen in each period and how flat the optimum is.

    Args:
        tried: columns seed, period, strategy, coefficient, auc and log_loss (on V_t), share.
        select: by what they were chosen.
    """
    strategies = sorted(tried["strategy"].unique())
    value = tried["auc"] if select == "auc" else -tried["log_loss"]
    loss = tried.assign(
        loss=value - value.groupby([tried[c] for c in ("strategy", "seed", "period")]).transform("max"),
    )
    by_period = chosen_coefficients(tried).groupby(["strategy", "period"]).mean()
    with drawing():
        figure = Figure(figsize=(8.4, 3.1))
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.08, right=0.83, top=0.9, bottom=0.16, wspace=0.3)
        looks = {s: look(s, i) for i, s in enumerate(strategies)}
        ends = {}
        for s in strategies:
            mine = loss[loss["strategy"] == s]
            left.plot(by_period[s].index, by_period[s], **looks[s])
            by_value = mine.groupby("coefficient")["loss"]
            mean = by_value.mean()
            right.plot(mean.index, mean, **looks[s])
            right.fill_between(
                mean.index, by_value.quantile(0.25), by_value.quantile(0.75), color=looks[s]["color"], alpha=0.12, lw=0
            )
            ends[s] = (float(mean.index[-1]), float(mean.iloc[-1]))
        left.set_ylim(-0.04, 1.04)
        left.set_title("Chosen coefficient (1: long-term alone)")
        left.set_xlabel("updated period")
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.set_title(f"Validation {'AUC' if select == 'auc' else 'log-likelihood'} below its period's best")
        right.set_xlabel("coefficient")
        label_ends(right, ends, looks)
    caption = (
        "Left: the weight of the long-term adapter that the validation rows chose (seeds averaged). Right: what "
        "another coefficient would have lost there; mean over periods and seeds, the band holds half of them. A flat "
        "line means that the choice hardly matters."
    )
    data = loss[["seed", "period", "strategy", "coefficient", "auc", "log_loss", "loss", "share"]]
    return Drawn("coefficients", "Chosen coefficients", caption, figure, data)


def learning_curves(manifests: Iterable[Mapping[str, Any]]) -> Drawn | None:
    """Draw the validation AUC of every adapter over its optimizer steps, one panel per kind of adapter.

    Args:
        manifests: of the adapters: `digest`, `spec`, and `facts` with `history` (step, mean loss, validation AUC),
            `best_step` and, where recorded, `stopped_by` (`patience` or `budget`).

    Returns:
        the figure, with one row of data per validation; None where no adapter has a history. Adapters whose validation
        rows are of one class have no AUC and are left out.
    """
    rows = [
        {
            "kind": account.kind_of(m["spec"]),
            "digest": m["digest"],
            "step": step,
            "loss": loss,
            "auc": auc,
            "best": step == m["facts"].get("best_step"),
            "stopped_by": m["facts"].get("stopped_by", ""),
        }
        for m in manifests
        for step, loss, auc in m["facts"].get("history") or []
    ]
    data = pd.DataFrame(rows, columns=["kind", "digest", "step", "loss", "auc", "best", "stopped_by"])
    data = data[data.groupby("digest")["auc"].transform("min") >= 0].reset_index(drop=True)
    if data.empty:
        return None
    kinds = sorted(data["kind"].unique())
    with drawing():
        height = 0.5 + 1.7 * len(kinds)
        figure = Figure(figsize=(8.4, height))
        panels = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
        figure.subplots_adjust(left=0.08, right=0.98, top=1 - 0.25 / height, bottom=0.45 / height, hspace=0.55)
        for axes, kind in zip(panels, kinds, strict=True):
            adapters = [one for _, one in data[data["kind"] == kind].groupby("digest")]
            ended = [one["stopped_by"].iloc[0] for one in adapters]
            for one, why in zip(adapters, ended, strict=True):
                colour = ORANGE if why == "budget" else BLUE
                axes.plot(one["step"], one["auc"], color=colour, lw=0.8, alpha=0.5)
                best = one[one["best"]]
                axes.plot(best["step"], best["auc"], "o", color=colour, ms=3)
            patient = f", {ended.count('patience')} stopped by patience" if any(ended) else ""
            axes.set_title(f"{kind}: {len(adapters)} adapters{patient}")
            axes.set_ylabel("validation AUC")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[-1].set_xlabel("optimizer step")
    caption = "One line per adapter, a dot at the step that was kept. Orange: the budget ended before patience did."
    return Drawn("learning_curves", "Learning curves", caption, figure, data)


def cost_per_period(timings: pd.DataFrame) -> Drawn:
    """Draw the worker-seconds of every period, by stage."""
    table = account.per_period(timings[timings["stage"] != "idle"])
    with drawing():
        figure = Figure(figsize=(8.4, 3.1))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.08, right=0.83, top=0.95, bottom=0.16)
        floor = np.zeros(len(table))
        for stage in table.columns:
            colour = STAGE_COLOURS.get(stage, GREY)
            axes.bar(table.index, table[stage], bottom=floor, color=colour, width=0.75, label=stage)
            floor += table[stage].to_numpy()
        axes.set_xlabel("period")
        axes.set_ylabel("seconds of work")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(*_reversed(axes), loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8)
    data = table.reset_index().melt(id_vars="period", var_name="stage", value_name="seconds")
    caption = "Seconds of work by stage, summed over workers: work done in parallel counts once per worker."
    return Drawn("cost_per_period", "Cost per period", caption, figure, data)


def wall_clock(timings: pd.DataFrame) -> Drawn:
    """Draw where the wall clock went."""
    data = account.wall_clock(timings)
    good, rows = account.goodput(data), data.iloc[::-1].reset_index(drop=True)
    with drawing():
        height = 0.7 + 0.26 * len(rows)
        figure = Figure(figsize=(8.4, height))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.14, right=0.97, top=1 - 0.05 / height, bottom=0.45 / height)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.barh(rows.index, rows["seconds"], color=[STAGE_COLOURS.get(s, GREY) for s in rows["stage"]], height=0.7)
        axes.set_yticks(rows.index, rows["stage"])
        longest = float(rows["seconds"].max())
        for y, row in enumerate(rows.to_dict("records")):
            text = f" {row['seconds']:.1f} s, {row['share']:.1%}"
            axes.text(row["seconds"], y, text, va="center", fontsize=8, color="#333333")
        axes.set_xlim(0, longest * 1.18)
        axes.set_xlabel("seconds of wall clock")
    caption = f"Each second is booked to one stage. Goodput, the share in training steps and scoring, is {good:.1%}."
    return Drawn("wall_clock", "Wall clock", caption, figure, data)


def frontier(table: pd.DataFrame) -> Drawn:
    """Draw mean AUC against the seconds of training that a strategy needs by itself.

    Args:
        table: columns strategy, mean_auc, training_seconds (NaN: needs no training, drawn as a level).
    """
    trained = table[table["training_seconds"].notna()].sort_values("training_seconds")
    levels = table[table["training_seconds"].isna() & (table["strategy"] == "frozen")]
    with drawing():
        figure = Figure(figsize=(8.4, 3.6))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.09, right=0.8, top=0.95, bottom=0.14)
        looks = {s: look(s, i) for i, s in enumerate(table["strategy"])}
        for row in trained.to_dict("records"):
            style = looks[row["strategy"]] | {"linestyle": "none", "marker": looks[row["strategy"]]["marker"] or "o"}
            axes.plot(row["training_seconds"], row["mean_auc"], ms=6, **style)
        for row in levels.to_dict("records"):
            axes.axhline(row["mean_auc"], color=looks[row["strategy"]]["color"], lw=1, ls="--")
        axes.margins(x=0.12, y=0.12)
        axes.set_xlabel("seconds of training, were the strategy run alone (one seed, all periods)")
        axes.set_ylabel("mean AUC")
        axes.set_xlim(0, axes.get_xlim()[1])
        points = {r["strategy"]: (r["training_seconds"], r["mean_auc"]) for r in trained.to_dict("records")}
        label_points(axes, points, looks)
        right = axes.get_xlim()[1]
        label_ends(axes, {r["strategy"]: (right, r["mean_auc"]) for r in levels.to_dict("records")}, looks)
    columns = [c for c in ("strategy", "mean_auc", "trainings", "training_seconds") if c in table]
    caption = "Up and to the left is better. Adapters that strategies share count in full for each."
    return Drawn("frontier", "AUC against training", caption, figure, pd.concat([trained, levels])[columns])


def _lines(axes: Axes, wide: pd.DataFrame, order: list[str]) -> None:
    looks = {s: look(s, order.index(s)) for s in wide.columns}
    for strategy in wide.columns:
        # A line of one point would be invisible without a marker.
        marker = looks[strategy]["marker"] or ("." if wide[strategy].count() == 1 else "")
        axes.plot(wide.index, wide[strategy], **(looks[strategy] | {"marker": marker}))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    axes.set_ylim(*axes.get_ylim())
    ends = {}
    for strategy in wide.columns:
        known = wide[strategy].dropna()
        if len(known):
            ends[strategy] = (float(known.index[-1]), float(known.iloc[-1]))
    label_ends(axes, ends, looks)


def _tiles(axes: Axes, delta: pd.DataFrame) -> None:
    """Draw differences as coloured tiles, one line per strategy, purple for better and orange for worse."""
    limit = float(np.nanmax(np.abs(delta.to_numpy()))) or 1.0
    half = np.diff(delta.index.to_numpy(np.float64)).min() / 2 if len(delta) > 1 else 0.5
    edges = np.r_[delta.index.to_numpy(np.float64) - half, delta.index[-1] + half]
    axes.pcolormesh(edges, np.arange(delta.shape[1] + 1), delta.T, cmap="PuOr", vmin=-limit, vmax=limit, ec="white")
    axes.grid(False)
    axes.set_ylim(delta.shape[1], 0)
    axes.tick_params(axis="y", left=False, labelleft=False)
    for row, strategy in enumerate(delta.columns):
        text = f"{short(delta[strategy].mean(), sign=True)}  {strategy}"
        axes.annotate(text, (1.02, row + 0.5), xycoords=("axes fraction", "data"), va="center", fontsize=8)


def _reversed(axes: Axes) -> tuple[list, list]:
    handles, labels = axes.get_legend_handles_labels()
    return handles[::-1], labels[::-1]
