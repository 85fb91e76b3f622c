"""LSAT: long- and short-term adapters, merged at inference (CIKM 2024, equations 3 and 4)."""

from lsat_ray.strategies.base import Plan, Setting, long_and_short, pairs


class LsatEN:
    """Average the outputs of the held long-term and the fresh short-term adapter; alpha from V_t."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.m = setting.config.replay.long_periods
        self.name = f"lsat-en({self.m})"

    def plan(self, t: int) -> Plan:
        """Return both adapters and the grid of alpha."""
        search = self.setting.config.search
        return Plan(long_and_short(self.setting, t, self.m), "output-ensemble", pairs(search.grid), search.space)


class LsatENFull:
    """LSAT-EN whose long-term adapter is the full retraining of every period."""

    name = "lsat-en(full)"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def plan(self, t: int) -> Plan:
        """Return both adapters and the grid of alpha."""
        search = self.setting.config.search
        return Plan(long_and_short(self.setting, t, t), "output-ensemble", pairs(search.grid), search.space)


class LsatTA:
    """Interpolate the adapters entry by entry, as the LSAT code does; lambda from V_t."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.m = setting.config.replay.long_periods
        self.name = f"lsat-ta({self.m})"

    def plan(self, t: int) -> Plan:
        """Return both adapters and the grid of lambda."""
        adapters = long_and_short(self.setting, t, self.m)
        return Plan(adapters, "factor-arithmetic", pairs(self.setting.config.search.grid))
