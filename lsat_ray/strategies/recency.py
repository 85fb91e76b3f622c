"""Full retraining whose rows count less with age: one adapter, the simplest rival of two."""

from __future__ import annotations

from dataclasses import replace

from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.errors import LsatError
from lsat_ray.strategies.base import CHOICE, Plan, Setting, full_retraining

HALF_LIVES = (1.0, 2.0, 4.0, 8.0)
"""Half-lives that are tried, in periods of mean length."""


class Recency:
    """Train as full retraining once per half-life, and serve the adapter that is best on V_t.

    V_t has been trained on by none of them: the rows are those of full retraining. A row's weight is
    0.5 ** (age / half-life), its age counted in samples of the stream.
    """

    name = "recency"

    def __init__(self, setting: Setting) -> None:
        self.setting = replace(setting, learner=None)

    def plan(self, t: int) -> Plan:
        """Return one adapter per half-life; the candidate weights name them by their half-life in periods."""
        if not self.setting.samples:
            raise LsatError("strategy recency: Setting.samples is empty; a half-life is counted in periods' samples")
        period = sum(self.setting.samples[:t]) / t  # of the periods so far: what comes later is not known yet
        spec = full_retraining(self.setting, t)
        assert isinstance(spec, AdapterSpec)
        found = tuple(replace(spec, half_life=h * period) for h in HALF_LIVES)
        return Plan(found, CHOICE, tuple((h,) for h in HALF_LIVES))
