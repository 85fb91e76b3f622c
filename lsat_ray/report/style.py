"""How figures look: colour-blind-safe, few lines, labels at the lines; the same data gives the same files."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lsat_ray.files import write_atomic

RC = {
    "svg.hashsalt": "lsat_ray",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
}
"""matplotlib settings of every figure; `drawing` applies them."""

# Okabe and Ito's palette, which stays distinct under the common colour-vision deficiencies.
BLUE, ORANGE, SKY, GREEN, RED, PINK, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#B8A800",
)
GREY, BLACK = "#8c8c8c", "#000000"
_PALETTE = (BLUE, ORANGE, GREEN, RED, PINK, SKY, YELLOW)

_KNOWN: tuple[tuple[str, str, str, str], ...] = (
    (r"full-retraining", BLUE, "-", "o"),
    (r"fine-tuning", ORANGE, "-", "s"),
    (r"short-term", SKY, "-", "v"),
    (r"long-term", GREEN, "-", "^"),
    (r"lsat-en\(full\)|lsat-en-full", PINK, "-", "D"),
    (r"lsat-en.*", RED, "-", "D"),
    (r"lsat-ta.*", YELLOW, "-", "P"),
    (r"frozen", "#555555", "--", ""),
    (r"like-share\+item-rate", GREY, "-.", ""),
    (r"like-share", GREY, ":", ""),
    (r"item-rate", GREY, "--", ""),
    (r"oracle", BLACK, ":", ""),
)

STAGE_COLOURS = {
    "train": BLUE,
    "score": GREEN,
    "search": ORANGE,
    "publish": PINK,
    "serve": SKY,
    "encode": RED,
    "backbone": YELLOW,
    "report": "#c2c2c2",
    "start-up": "#a6a6a6",
    "idle": "#dddddd",
    "unaccounted": "#eeeeee",
}


_SIDES = (
    (7, 0, "left"),
    (-7, 0, "right"),
    (0, 10, "center"),
    (0, -10, "center"),
    (7, 10, "left"),
    (7, -10, "left"),
)
"""Where a point's name may stand: offset in typographic points and alignment."""


@dataclass(frozen=True)
class Drawn:
    """A figure and what it shows."""

    name: str
    """File name without suffix."""
    title: str
    caption: str
    """How to read it, in a sentence or two."""
    figure: Figure
    data: pd.DataFrame
    """The numbers behind it, written beside it as CSV."""


def drawing() -> Any:
    """Return the context in which figures are made and saved; the process's own settings are left alone."""
    return matplotlib.rc_context(RC)


def look(strategy: str, position: int = 0) -> dict[str, Any]:
    """Return colour, line style and marker of a strategy; unknown ones take theirs from their position."""
    for pattern, colour, line, marker in _KNOWN:
        if re.fullmatch(pattern, strategy):
            return {"color": colour, "linestyle": line, "marker": marker}
    line, marker = (("--", "x"), ("-.", "+"), (":", "*"))[position // len(_PALETTE) % 3]
    return {"color": _PALETTE[position % len(_PALETTE)], "linestyle": line, "marker": marker}


def familiar(strategy: str) -> bool:
    """Say whether a strategy has a look of its own: the paper's, the naive rows, the frozen backbone, the oracle."""
    return any(re.fullmatch(pattern, strategy) for pattern, *_ in _KNOWN)


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write each line's name right of its end, moved apart where names would overlap.

    Args:
        axes: after its limits are final.
        ends: last point (x, y) of each line.
        looks: by name, for the colour.
    """
    names = sorted((n for n in ends if np.isfinite(ends[n][1])), key=lambda n: ends[n][1])
    if not names:
        return
    low, high = axes.get_ylim()
    figure = axes.get_figure(root=True)
    points = axes.get_position().height * (figure.get_figheight() if figure else 3.0) * 72
    gap = 10.5 / points
    wanted = [(ends[n][1] - low) / (high - low) for n in names]
    for name, y in zip(names, _apart(wanted, gap), strict=True):
        axes.annotate(
            name,
            xy=ends[name],
            xytext=(1.03, y),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=looks[name]["color"],
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": looks[name]["color"],
                "lw": 0.5,
                "alpha": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def label_points(axes: Axes, points: Mapping[str, tuple[float, float]], looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write each point's name beside it, on the first side where it meets no other point or name.

    Args:
        axes: after its limits are final.
        points: by name (x, y).
        looks: by name, for the colour.
    """
    place = {n: axes.transData.transform(xy) * 72 / axes.figure.dpi for n, xy in points.items()}
    edge = axes.transAxes.transform((0, 0))[0] * 72 / axes.figure.dpi
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in place.values()]
    for name, (x, y) in place.items():
        width = 4.9 * len(name)
        boxes = []
        for dx, dy, ha in _SIDES:
            left = x + dx - {"left": 0, "right": width, "center": width / 2}[ha]
            boxes.append((left, y + dy - 4.5, left + width, y + dy + 4.5))
        clear = [i for i, b in enumerate(boxes) if b[0] > edge and not any(_meet(b, t) for t in taken)]
        best = clear[0] if clear else 0
        taken.append(boxes[best])
        dx, dy, ha = _SIDES[best]
        axes.annotate(
            name,
            xy=points[name],
            xytext=(dx, dy),
            textcoords="offset points",
            ha=ha,
            va="center",
            fontsize=8,
            color=looks[name]["color"],
        )


def save(drawn: Drawn, folder: Path) -> list[Path]:
    """Write SVG, PNG and CSV into a folder; the same data gives the same bytes."""
    svg, png = io.BytesIO(), io.BytesIO()
    with drawing():
        drawn.figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        drawn.figure.savefig(png, format="png", metadata={"Software": None})
    csv = drawn.data.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    contents: dict[str, bytes | str] = {"svg": svg.getvalue(), "png": png.getvalue(), "csv": csv}
    return [write_atomic(folder / f"{drawn.name}.{suffix}", content) for suffix, content in contents.items()]


def _apart(wanted: list[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Return positions in the same order, at least `gap` apart and as close to `wanted` (ascending) as that allows.

    Clusters of names that would overlap are spread around their common mean, within [low, high] where they fit.
    """
    clusters: list[list[float]] = []
    for y in wanted:
        clusters.append([y])
        while len(clusters) > 1 and _span(clusters[-2], gap)[1] + gap > _span(clusters[-1], gap)[0]:
            last = clusters.pop()
            clusters[-1] = clusters[-1] + last
    places = [_span(c, gap)[0] + i * gap for c in clusters for i in range(len(c))]
    for i in range(len(places) - 1, -1, -1):  # not above the axes ...
        places[i] = min(places[i], high - (len(places) - 1 - i) * gap)
    for i in range(len(places)):  # ... and, which comes first, not below
        places[i] = max(places[i], low + i * gap)
    return places


def _meet(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Say whether two boxes (left, bottom, right, top) overlap."""
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _span(cluster: list[float], gap: float) -> tuple[float, float]:
    middle, half = sum(cluster) / len(cluster), (len(cluster) - 1) * gap / 2
    return middle - half, middle + half
