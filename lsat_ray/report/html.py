"""One self-contained page: figures inline, nothing fetched, everything from the run escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from lsat_ray.evaluation.significance import short
from lsat_ray.report import account, tables
from lsat_ray.report.reader import RunReader
from lsat_ray.report.study import StudyPart
from lsat_ray.report.style import Drawn


@dataclass(frozen=True)
class Column:
    """Head of a column."""

    name: str
    number: bool = False


@dataclass(frozen=True)
class Row:
    """Cells as text."""

    cells: tuple[str, ...]
    dim: bool = False


@dataclass(frozen=True)
class Grid:
    """A table as the page shows it."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Section:
    """A part of the page: any of a note, a table, a figure and a caption."""

    title: str
    note: str = ""
    table: Grid | None = None
    svg: Markup | None = None
    caption: str = ""


def page(
    run: RunReader,
    table: pd.DataFrame | None,
    drawn: Sequence[Drawn],
    missing: Sequence[str],
    extra: Sequence[StudyPart] = (),
    noise: float | None = None,
) -> str:
    """Return the report as HTML.

    Args:
        run: the run folder.
        table: `tables.mean_auc`, or None without metrics.
        drawn: the figures, in order, saved under `figures/`.
        missing: one line per part that is left out.
        extra: the study's tables and figures.
        noise: noise floor, see `tables.noise_line`.
    """
    folder = run.path / "figures"
    sections = [
        Section("Mean AUC", note="Left out: the run has no metrics.parquet.")
        if table is None
        else Section(
            "Mean AUC",
            note=stale_line(run.ledger),
            table=strategy_grid(table),
            caption=f"{_MEAN_CAPTION} {tables.noise_line(noise)}".rstrip(),
        ),
    ]
    sections += [Section(d.title, svg=inline(d, folder), caption=d.caption) for d in drawn if d.name != "wall_clock"]
    for part in extra:
        grid = None if part.table is None else frame_grid(part.table)
        svg = None if part.drawn is None else inline(part.drawn, folder)
        sections.append(Section(part.title, table=grid, svg=svg, caption=part.caption))
    sections.append(_wall_clock(run, [inline(d, folder) for d in drawn if d.name == "wall_clock"]))
    for line in missing:
        title, _, why = line.partition(": ")
        sections.append(Section(title, note=f"Left out: {why}."))
    headline = "No strategy was measured." if table is None else tables.headline(table)
    return render(run, headline, sections)


def render(run: RunReader, headline: str, sections: Sequence[Section]) -> str:
    """Return a page of sections under a headline; config and versions of the run follow them."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lsat_ray.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("template.html").render(
        name=run.name,
        headline=headline,
        sections=sections,
        config=run.config,
        versions=_versions(run.versions),
    )


_MEAN_CAPTION = (
    "Unweighted mean of the AUC over the tested periods; GAUC is the AUC within users. Differences are paired. Their "
    "95 % intervals come from a bootstrap by user (and by seed and backbone where there are several). p is the larger "
    "of the bootstrap's and a permutation test's by user, after Holm's correction over all rows. Grey rows need no "
    "model, or know the truth."
)


def stale_line(ledger: Sequence[dict[str, Any]]) -> str:
    """Return which rows answered with older models because a training failed for good; empty where none did."""
    behind: dict[str, list[int]] = {}
    for record in ledger:
        if record.get("stage") == "score" and record.get("stale"):
            behind.setdefault(record["strategy"], []).append(record["period"])
    if not behind:
        return ""
    rows = "; ".join(f"{name} on {', '.join(map(str, sorted(set(t))))}" for name, t in behind.items())
    return f"Stale: a training failed for good, and older models answered ({rows}). The same command tries it again."


def strategy_grid(table: pd.DataFrame) -> Grid:
    """Return `tables.mean_auc` as the page shows it."""
    numbers = {
        "mean AUC": ("mean_auc", 4),
        "sd over seeds": ("sd_seeds", 4),
        "GAUC": ("gauc", 4),
        "log-loss": ("log_loss", 4),
        "accuracy": ("accuracy", 3),
        "ECE": ("ece", 4),
    }
    rows = [
        Row(
            (r["strategy"], *(short(r[column], digits) for column, digits in numbers.values()), r["verdict"]),
            dim=not tables.has_model(r["strategy"]),
        )
        for r in table.to_dict("records")
    ]
    heads = (Column("strategy"), *(Column(n, number=True) for n in numbers), Column("against full retraining"))
    return Grid(heads, tuple(rows))


def frame_grid(frame: pd.DataFrame) -> Grid:
    """Return any frame as the page shows it; numbers with four digits, NaN as a dash."""
    numeric = [pd.api.types.is_numeric_dtype(frame[c]) for c in frame]
    rows = tuple(Row(tuple(_cell(v) for v in row)) for row in frame.itertuples(index=False))
    return Grid(tuple(Column(str(c), n) for c, n in zip(frame.columns, numeric, strict=True)), rows)


def inline(drawn: Drawn, folder: Path) -> Markup:
    """Return a saved figure as an SVG element without prologue, metadata or ids that another figure may have too."""
    svg = (folder / f"{drawn.name}.svg").read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", svg, count=3)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{drawn.name}-", svg)
    label = str(Markup.escape(drawn.title))
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def _wall_clock(run: RunReader, figure: Sequence[Markup]) -> Section:
    title = "Wall-clock account"
    if run.timings is None or run.timings.empty:
        return Section(title, note="Left out: the run has no timings.parquet.")
    clock = account.wall_clock(run.timings)
    heads = (Column("stage"), Column("seconds", True), Column("share", True), Column("seconds of work", True))
    rows = [
        Row((r["stage"], f"{r['seconds']:.1f}", f"{r['share']:.1%}", f"{r['worker_seconds']:.1f}"))
        for r in clock.to_dict("records")
    ]
    total, good = clock["seconds"].sum(), account.goodput(clock)
    rows.append(Row(("all", f"{total:.1f}", "100.0%", f"{clock['worker_seconds'].sum():.1f}")))
    eaters = clock[~clock["stage"].isin(account.GOODPUT)].sort_values("seconds", ascending=False).head(3)
    rest = ", ".join(f"{r['stage']} {r['share']:.1%}" for r in eaters.to_dict("records"))
    caption = (
        f"Goodput {good:.1%}: the share of the wall clock in training steps and scoring. Most of the rest: {rest}."
    )
    return Section(title, table=Grid(heads, tuple(rows)), svg=next(iter(figure), None), caption=caption)


def _versions(versions: dict[str, Any]) -> Grid | None:
    if not versions:
        return None
    rows = tuple(Row((str(k), str(v))) for k, v in sorted(versions.items()))
    return Grid((Column("package"), Column("version")), rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.4f}".rstrip("0").rstrip(".") if abs(value) >= 1 else short(value)
    return "-" if value is None else str(value)
