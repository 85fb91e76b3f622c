"""The report of the next-item task: its three tables on one page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lsat_ray.evaluation.significance import ALPHA
from lsat_ray.files import write_atomic
from lsat_ray.report.reader import RunReader


def write(run_dir: Path, tables: Mapping[str, pd.DataFrame], reference: str) -> Path:
    """Write `report.html`.

    Args:
        run_dir: the run folder.
        tables: `table`, `groups` and `paired` of `generative/study.py`.
        reference: row that the others are compared with.
    """
    from lsat_ray.report.html import Section, frame_grid, render

    table = tables["table"]
    mean = table[table["block"] == "mean"].drop(columns="block").sort_values("ndcg10", ascending=False)
    captions = "low and high bound NDCG@10 (95 %, bootstrap by user); 0 beams: all items are ranked, none is searched."
    sections = [
        Section("Mean over blocks", table=frame_grid(mean), caption=captions),
        Section("Block by block", table=frame_grid(table[table["block"] != "mean"]), caption=captions),
        Section(
            f"NDCG@10 against {reference}",
            table=frame_grid(tables["paired"]),
            caption="Paired, by user; p from swapped users, after Holm.",
        ),
        Section("New, dormant and active users", table=frame_grid(tables["groups"])),
    ]
    return write_atomic(run_dir / "report.html", render(RunReader(run_dir), headline(tables["paired"]), sections))


def headline(paired: pd.DataFrame) -> str:
    """Return which rows differ from the reference, in one sentence."""
    if paired.empty:
        return "No row was compared."
    apart = paired[((paired["low"] > 0) | (paired["high"] < 0)) & (paired["p_adjusted"] < ALPHA)]
    reference, how = paired["reference"].iloc[0], "95 % interval by user without zero, p < .05 after Holm"
    if apart.empty:
        return f"No row differs from {reference} in NDCG@10 ({how})."
    rows = [f"{r.strategy} at {r.beams} beams ({r.difference:+.4f})" for r in apart.itertuples()]
    return f"Apart from {reference} in NDCG@10 ({how}): {', '.join(rows)}."
