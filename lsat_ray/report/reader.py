"""Read what the report needs from a run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lsat_ray.config.running import Select
from lsat_ray.errors import LsatError
from lsat_ray.evaluation.significance import Key, Runs, Scored

METRICS = ["strategy", "period", "seed", "auc"]
TIMINGS = ["period", "stage", "subject", "start", "seconds"]
COEFFICIENTS = ["seed", "period", "strategy", "coefficient", "auc", "log_loss", "share"]


@dataclass(frozen=True)
class RunReader:
    """Read a run folder part by part; a part that is not there is None (or empty) and the report says so.

    Files: `metrics.parquet`, `timings.parquet`, `search/coefficients.parquet`,
    `scores/<strategy>/seed<k>/period<tt>.parquet`, `config.resolved.yaml`, `versions.json`, `ledger.jsonl`,
    `adapters/<digest>/manifest.json`, `table2.csv` and `study/<figure>.csv`.
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the run: its folder's."""
        return self.path.resolve().name

    @cached_property
    def metrics(self) -> pd.DataFrame | None:
        """One row per strategy, tested period and seed, or None."""
        return self._parquet("metrics.parquet", METRICS)

    @cached_property
    def timings(self) -> pd.DataFrame | None:
        """One row per timed stage (`start` and `seconds` in seconds, `period` 0 where it is of none), or None."""
        return self._parquet("timings.parquet", TIMINGS)

    @cached_property
    def coefficients(self) -> pd.DataFrame | None:
        """One row per coefficient tried (`auc` and `log_loss` are those on V_t), or None."""
        return self._parquet("search/coefficients.parquet", COEFFICIENTS)

    @cached_property
    def select(self) -> Select:
        """By what coefficients were chosen; the AUC in runs from before there was a rule."""
        tree = yaml.safe_load(self.config or "") or {}
        select: Select = tree.get("search", {}).get("select", "auc")
        return select

    @cached_property
    def config(self) -> str | None:
        """The resolved config as text, or None."""
        return self._text("config.resolved.yaml")

    @cached_property
    def versions(self) -> dict[str, Any]:
        """Versions by package; empty when not recorded."""
        text = self._text("versions.json")
        if text is None:
            return {}
        try:
            tree = json.loads(text)
        except json.JSONDecodeError as error:
            raise LsatError(f"{self.path / 'versions.json'}: not JSON ({error}); delete it and run again") from error
        return tree if isinstance(tree, dict) else {"versions": tree}

    @cached_property
    def ledger(self) -> list[dict[str, Any]]:
        """Records that count: the last of each stage. A last line that was cut off by a kill is left out."""
        lines = (self._text("ledger.jsonl") or "").removesuffix("\n").split("\n")
        records: dict[tuple[Any, ...], dict[str, Any]] = {}
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line or "null")
            except json.JSONDecodeError as error:
                if number == len(lines):
                    break
                raise LsatError(f"{self.path / 'ledger.jsonl'}: line {number}: not JSON ({error})") from error
            if isinstance(record, dict):
                key = tuple(record.get(name) for name in ("seed", "strategy", "period", "stage"))
                records.pop(key, None)
                records[key] = record
        return list(records.values())

    @cached_property
    def scores(self) -> dict[str, Runs]:
        """Scores by strategy, seed and period; empty when none are kept."""
        root = self.path / "scores"
        found: dict[str, dict[Key, Scored]] = {}
        for file in sorted(root.glob("**/seed*/period*.parquet")):
            seed, period = file.parent.name.removeprefix("seed"), file.stem.removeprefix("period")
            if not seed.isdecimal() or not period.isdecimal():
                continue
            strategy = file.parent.parent.relative_to(root).as_posix()
            columns = ["row", "user", "label", "score"]
            frame = self._parquet(file.relative_to(self.path), columns)
            if frame is not None:
                found.setdefault(strategy, {})[Key(int(seed), int(period))] = Scored.of(frame)
        return dict(found)

    @cached_property
    def manifests(self) -> list[dict[str, Any]]:
        """Manifests of the adapters, by digest; empty when none are kept."""
        found = []
        for file in sorted((self.path / "adapters").glob("*/manifest.json")):
            try:
                found.append(json.loads(file.read_text()))
            except json.JSONDecodeError as error:
                raise LsatError(f"{file}: not JSON ({error}); delete the folder, the next run trains it") from error
        return found

    def table(self, name: str) -> pd.DataFrame | None:
        """Return a table of the study (`table2`, or `fig2` .. `fig5` under `study/`), or None."""
        for file in (self.path / f"{name}.csv", self.path / "study" / f"{name}.csv"):
            if file.is_file():
                return pd.read_csv(file)
        return None

    def _text(self, name: str) -> str | None:
        file = self.path / name
        return file.read_text() if file.is_file() else None

    def _parquet(self, name: str | Path, columns: list[str]) -> pd.DataFrame | None:
        file = self.path / name
        if not file.is_file():
            return None
        frame = pd.read_parquet(file)
        missing = [c for c in columns if c not in frame]
        if missing:
            raise LsatError(f"{file}: no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
        return frame
