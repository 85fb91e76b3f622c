"""Figures 2, 3 and 4 of the LSAT paper, from cross scores (methods.md 2 and 8).

Cross scores are one frame with a row per scored sample and the columns

    strategy  str    name, with the backbone's before it where several are compared (`mf/full-retraining`)
    seed      int
    trained   int    t, the last period that the model has learnt from (0: from none)
    tested    int    the period that the sample is of
    row       int    the sample
    item      int    target item
    label     int    0 or 1
    score     float  higher for a likelier like

All rows of a table are on the same samples: those that every one of them has a score for.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lsat_ray.errors import LsatError
from lsat_ray.evaluation import metrics
from lsat_ray.report.style import BLUE, ORANGE, Drawn, drawing, label_ends, look

CROSS = ["strategy", "seed", "trained", "tested", "row", "item", "label", "score"]
"""Columns of cross scores."""


def curve_on(cross: pd.DataFrame, tested: int, items: np.ndarray | None = None) -> pd.DataFrame:
    """Return the AUC on one period of every period's model (Fig. 2), or on some of its samples (Fig. 4).

    Args:
        cross: cross scores.
        tested: the period that every model is tested on, the last one in the paper.
        items: keep samples of these target items only; Fig. 4 takes the targets of D_1..D_10
            (`evaluation.warmcold.seen_items`), a fixed set for all models, where the paper's code lets it grow.

    Returns:
        columns strategy, seed, trained, auc, rows (samples); models that have learnt from the tested period are left
        out.

    Raises:
        LsatError: when a column is missing or the models share no sample.
    """
    _needs(cross)
    kept = cross[(cross["tested"] == tested) & (cross["trained"] < tested)]
    kept = _on_shared_samples(kept, ["strategy", "seed", "trained"])
    if items is not None:
        kept = kept[kept["item"].isin(items)]
    return _aucs(kept, ["strategy", "seed", "trained"])


def warm_and_cold(cross: pd.DataFrame, trained: int, warm: np.ndarray) -> pd.DataFrame:
    """Return the AUC on warm and on cold items of one period's model on all later periods together (Fig. 3).

    Args:
        cross: cross scores.
        trained: the model's period, 15 of 20 in the paper.
        warm: target items of D_1..D_trained and of the warm-up (`evaluation.warmcold.seen_items`).

    Returns:
        columns strategy, seed, split (`warm` or `cold`), auc, rows (samples).

    Raises:
        LsatError: when a column is missing or the strategies share no sample.
    """
    _needs(cross)
    kept = cross[(cross["trained"] == trained) & (cross["tested"] > trained)]
    kept = _on_shared_samples(kept, ["strategy", "seed"])
    split = np.where(kept["item"].isin(warm), "warm", "cold")
    return _aucs(kept.assign(split=split), ["strategy", "seed", "split"])


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
    """Draw Fig. 3: AUC on warm and on cold items, one line per strategy.

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


def _on_shared_samples(cross: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return the scores of the samples that every group of `keys` has, the same ones for all."""
    twice = cross.duplicated([*keys, "row"])
    if twice.any():
        first = cross[twice].iloc[0]
        raise LsatError(f"study: {first['strategy']} scored sample {first['row']} twice; drop one of the scores")
    groups = cross.groupby(keys).ngroups
    scored = cross["row"].map(cross["row"].value_counts())
    shared = cross[scored == groups]
    if groups and shared.empty:
        raise LsatError("study: no sample was scored by every row of the table; score the missing ones")
    return shared


def _aucs(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    found = [
        dict(zip(keys, key, strict=True))
        | {"auc": metrics.auc(g["label"].to_numpy(), g["score"].to_numpy()), "rows": len(g)}
        for key, g in rows.groupby(keys, sort=True)
    ]
    return pd.DataFrame(found, columns=[*keys, "auc", "rows"])


def _needs(cross: pd.DataFrame) -> None:
    missing = [c for c in CROSS if c not in cross]
    if missing:
        raise LsatError(f"study: the cross scores have no column {', '.join(missing)}")
