"""The append-only record of a run: one line per (seed, strategy, period, stage)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lsat_ray.errors import LsatError
from lsat_ray.files import append_line

Key = tuple[int, str, int, str]


class Ledger:
    """Stages that are done, each with what it decided. Lines are never changed; a later line for the same stage wins.

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
            except (ValueError, KeyError, TypeError) as error:
                raise LsatError(
                    f"{self.path}: line {number} is not a record; delete the file to start afresh (adapters are kept)"
                ) from error
            if [type(part) for part in key] != [int, str, int, str]:
                raise LsatError(
                    f"{self.path}: line {number} is not a record; delete the file to start afresh (adapters are kept)"
                )
            self._keep(key, record)
        if len(whole) != len(raw):  # the process died while it wrote the last line
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def _keep(self, key: Key, record: dict[str, Any]) -> None:
        self._records.pop(key, None)  # the newest record of a stage stands last
        self._records[key] = record

    def __len__(self) -> int:
        return len(self._records)

    def get(
        self, seed: int, strategy: str, period: int, stage: str, digest: str | None = None
    ) -> dict[str, Any] | None:
        """Return the record of a stage, or None where it is still to be done.

        Args:
            seed: of the adapters.
            strategy: name of the table's row.
            period: 1-based.
            stage: `search`, `score`, `publish`, `stale`.
            digest: of today's plan. A record with another digest, or with none, was made by another rule under the
                same name and does not count. None accepts any record.
        """
        record = self._records.get((seed, strategy, period, stage))
        if record is None or (digest is not None and record.get("digest") != digest):
            return None
        return record

    def append(self, seed: int, strategy: str, period: int, stage: str, **facts: Any) -> None:
        """Write a stage's record durably.

        A stage that is recorded stays as it is, unless `facts` hold a `digest` that differs from the record's: then
        the new record supersedes it.
        """
        key = (seed, strategy, period, stage)
        if self.get(*key, digest=facts.get("digest")) is not None:
            return
        record = {"seed": seed, "strategy": strategy, "period": period, "stage": stage, **facts}
        append_line(self.path, json.dumps(record, sort_keys=True))
        self._keep(key, record)

    def records(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Return the records that count, of one stage or of all, in the order written."""
        return [r for r in self._records.values() if stage is None or r["stage"] == stage]
