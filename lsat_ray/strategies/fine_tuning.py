"""Fine-tuning: go on from the last model with the newest period."""

from lsat_ray.data.periods import Slice
from lsat_ray.strategies.base import Plan, Setting, Spec, alone, full_retraining


class FineTuning:
    """Warm-start from period t - 1 on T_t + V_{t-1}; the old model is kept when no step beats it on V_t."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.name = setting.name("fine-tuning")
        self._chain: dict[int, Spec] = {1: full_retraining(setting, 1)}

    def spec(self, t: int) -> Spec:
        """Return link t of the chain."""
        for i in range(len(self._chain) + 1, t + 1):
            rows = [Slice(i, "train"), Slice(i - 1, "validation")]
            self._chain[i] = self.setting.spec(rows, i, init=self._chain[i - 1], keep_old=True)
        return self._chain[t]

    def plan(self, t: int) -> Plan:
        """Return link t."""
        return alone(self.spec(t))
