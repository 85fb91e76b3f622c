"""The append-only record of a run: one line per (seed, strategy, period, stage)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lsat_ray.errors import LsatError

Key = tuple[int, str, int, str]


class Ledger:
    """Stages that are done, each with what it decided; a record once written is never changed.

    Records hold no clock times, so two runs of one config write the same lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._records: dict[Key, dict[str, Any]] = {}
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                key = (record["seed"], record["strategy"], record["period"], record["stage"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise LsatError(
                    f"{self.path}: line {number} is not a record; delete the file to start afresh (adapters are kept)"
                ) from error
            self._records[key] = record
        if len(whole) != len(raw):  # the process died while it wrote the last line
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def __len__(self) -> int:
        return len(self._records)

    def get(
        self, seed: int, strategy: str, period: int, stage: str, digest: str | None = None
    ) -> dict[str, Any] | None:
        """Return the record of a stage, or None where it is still to be done under this digest."""
        record = self._records.get((seed, strategy, period, stage))
        return record if record and (digest is None or record.get("digest") == digest) else None

    def append(self, seed: int, strategy: str, period: int, stage: str, **facts: Any) -> None:
        """Write a stage's record durably; a stage that is recorded already is left as it is."""
        key = (seed, strategy, period, stage)
        if key in self._records and self._records[key].get("digest") == facts.get("digest"):
            return
        record = {"seed": seed, "strategy": strategy, "period": period, "stage": stage, **facts}
        line = (json.dumps(record, sort_keys=True) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)
        self._records[key] = record

    def records(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Return the records, of one stage or of all, in the order written."""
        return [r for r in self._records.values() if stage is None or r["stage"] == stage]
