"""Full retraining: a fresh model on all history, every period."""

from lsat_ray.strategies.base import Plan, Setting, alone, full_retraining


class FullRetraining:
    """Retrain on D_1..D_t after every period (methods.md 2)."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.name = setting.name("full-retraining")

    def plan(self, t: int) -> Plan:
        """Return the model fit on everything up to t."""
        return alone(full_retraining(self.setting, t))
