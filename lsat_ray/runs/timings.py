"""Seconds by stage, kept apart from the metrics so that those can be compared byte for byte."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from lsat_ray.files import append_line

COLUMNS = ["period", "stage", "subject", "start", "seconds", "targets"]


class Timings:
    """An append-only log of spans; a resumed run adds to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self, stage: str, start: float, seconds: float, period: int = 0, subject: str = "", targets: int = 0
    ) -> None:
        """Write one span.

        Args:
            stage: `start-up`, `backbone`, `train`, `encode`, `score`, `search`, `publish`, `serve`, `report`, `idle`.
            start: Unix seconds.
            seconds: how long it took.
            period: 0 where it is of none.
            subject: strategy or adapter.
            targets: targets trained on or scored.
        """
        values = (period, stage, subject, start, seconds, targets)
        append_line(self.path, json.dumps(dict(zip(COLUMNS, values, strict=True))))

    @contextmanager
    def span(self, stage: str, period: int = 0, subject: str = "", targets: int = 0) -> Iterator[None]:
        """Time a block."""
        start = time.time()
        try:
            yield
        finally:
            self.add(stage, start, time.time() - start, period, subject, targets)

    def frame(self) -> pd.DataFrame:
        """Return all spans; a torn last line is left out."""
        rows = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return pd.DataFrame(rows, columns=COLUMNS)
