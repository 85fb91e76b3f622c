"""One line of `doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What was found, and what can be done about it."""

    level: Literal["ok", "warn", "fail"]
    what: str
    text: str
    remedy: str = ""

    def line(self) -> str:
        """Return `what: text; remedy`."""
        return f"{self.what}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")
