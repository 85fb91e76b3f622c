"""Full retraining: a fresh adapter on all history, every period."""

from lsat_ray.strategies.base import Plan, Setting, full_retraining


class FullRetraining:
    """Retrain on D_1..D_t after every period (methods.md 2)."""

    name = "full-retraining"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def plan(self, t: int) -> Plan:
        """Return the adapter fit on everything up to t."""
        return Plan((full_retraining(self.setting, t),))
