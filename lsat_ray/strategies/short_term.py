"""Short-term only: a fresh adapter on the newest period."""

from lsat_ray.strategies.base import Plan, Setting, short_term


class ShortTerm:
    """Fit T_t alone after every period (LSAT equation 1)."""

    name = "short-term"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def plan(self, t: int) -> Plan:
        """Return the adapter fit on T_t."""
        return Plan((short_term(self.setting, t),))
