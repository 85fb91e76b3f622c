"""Long-term only: one adapter on D_1..D_m, then held."""

from lsat_ray.strategies.base import Plan, Setting, long_and_short


class LongTerm:
    """Retrain until period m, then hold (LSAT equation 2)."""

    name = "long-term"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def plan(self, t: int) -> Plan:
        """Return the adapter fit on D_1..D_min(t, m)."""
        return Plan((long_and_short(self.setting, t, self.setting.config.replay.long_periods)[0],))
