"""Rows that train nothing: the frozen backbone, and the one with solved samples in its prompt."""

from __future__ import annotations

from lsat_ray.scoring.model import FROZEN, IN_CONTEXT
from lsat_ray.strategies.base import Plan, Setting


class Frozen:
    """Serve the backbone without adapters."""

    name = "frozen"

    def __init__(self, setting: Setting) -> None:
        del setting

    def plan(self, t: int) -> Plan:
        """Return the same plan for every period."""
        del t
        return Plan((), FROZEN, ((),))


class BookGPT:
    """Ask the backbone with the newest solved samples in the prompt (methods.md 3)."""

    name = "bookgpt"

    def __init__(self, setting: Setting) -> None:
        self.demonstrations = setting.config.study.demonstrations

    def plan(self, t: int) -> Plan:
        """Return the same plan for every period; the demonstrations are the newest of period t."""
        del t
        return Plan((), IN_CONTEXT, ((float(self.demonstrations),),))
