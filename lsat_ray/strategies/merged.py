"""The rows that combine the same long- and short-term adapters in another way (methods.md 7.3).

None of them trains anything that LSAT-EN does not train.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lsat_ray.data.periods import Slice
from lsat_ray.strategies.base import Learned, Plan, Setting, long_and_short, pairs


class Merged:
    """Long-term (m) and short-term adapter under one merge; the weight comes from V_t unless `weights` fixes it."""

    def __init__(
        self,
        setting: Setting,
        row: str,
        merge: str,
        space: str | None = None,
        weights: tuple[float, float] | None = None,
    ) -> None:
        self.setting = setting
        self.m = setting.config.replay.long_periods
        self.name = f"{row}({self.m})"
        self.merge = merge
        self.space = space or setting.config.search.space
        self.grid = (weights,) if weights else pairs(setting.config.search.grid)

    def plan(self, t: int) -> Plan:
        """Return both adapters, the merge and its candidate weights."""
        return Plan(long_and_short(self.setting, t, self.m), self.merge, self.grid, self.space)


class Gradient:
    """Long-term (m) and short-term adapter under a merge whose weights are fitted on V_t by gradient.

    `learned-delta` has a weight for every adapter and module; `gated-ensemble` is a gate that mixes the outputs sample
    by sample (after RecLoRA).
    """

    def __init__(self, setting: Setting, row: str, merge: str) -> None:
        self.setting = setting
        self.m = setting.config.replay.long_periods
        self.name = f"{row}({self.m})"
        self.merge = merge

    def plan(self, t: int) -> Plan:
        """Return both adapters and what the weights are fitted on."""
        adapters = long_and_short(self.setting, t, self.m)
        return Plan(adapters, self.merge, (), learned=Learned(adapters, (Slice(t, "validation"),)))


class Sml:
    """SML's protocol (Zhang 2020) with merge coefficients as the transfer (methods.md 7.2).

    The coefficients are fitted where the merge of the adapters of t - 1 meets the period that came next, D_t, which
    none of them has seen; they are then applied, unchanged, to the adapters of t. Nothing after t is read. In the
    first period there is nothing to fit and the two updates are averaged.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.m = setting.config.replay.long_periods
        self.name = f"sml-merge({self.m})"

    def plan(self, t: int) -> Plan:
        """Return the adapters of t, and those of t - 1 with the rows of D_t for the fit."""
        adapters = long_and_short(self.setting, t, self.m)
        if t == 1:
            return Plan(adapters, "delta-arithmetic", ((0.5, 0.5),))
        before = long_and_short(self.setting, t - 1, self.m)
        return replace(Plan(adapters, "learned-delta", ()), learned=Learned(before, (Slice(t, "all"),)))


def row(
    name: str, merge: str, space: str | None = None, weights: tuple[float, float] | None = None
) -> Callable[[Setting], Merged]:
    """Return the factory of a `Merged` row, for `STRATEGIES`."""
    return lambda setting: Merged(setting, name, merge, space, weights)


MERGED: dict[str, Callable[[Setting], Merged | Gradient | Sml]] = {
    "lsat-delta": row("lsat-delta", "delta-arithmetic"),
    "lsat-linear": row("lsat-linear", "peft-linear"),
    "lsat-svd": row("lsat-svd", "svd"),
    "lsat-ties": row("lsat-ties", "ties"),
    "lsat-dare": row("lsat-dare", "dare"),
    "lsat-prune": row("lsat-prune", "magnitude-prune"),
    "lsat-learned": lambda setting: Gradient(setting, "lsat-learned", "learned-delta"),
    "reclora-gate": lambda setting: Gradient(setting, "reclora-gate", "gated-ensemble"),
    "lsat-en-logit": row("lsat-en-logit", "output-ensemble", space="logit"),
    "lsat-en-half": row("lsat-en-half", "output-ensemble", weights=(0.5, 0.5)),
    "sml-merge": Sml,
}
"""The rows of this file by their names in a config."""
