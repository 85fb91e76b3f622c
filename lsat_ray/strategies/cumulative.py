"""The cumulative family: the adapters of earlier periods stay, frozen, and are added to the newest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from lsat_ray.adapters.spec import AdapterSpec, Frozen
from lsat_ray.data.periods import Slice
from lsat_ray.strategies.base import Plan, Setting, first_adapter


class Cumulative:
    """Train on T_t + V_{t-1} beside the frozen adapters of earlier periods (methods.md 5, baselines).

    Link t is the whole sum, so a plan is a single adapter; its rank grows by r per period (with `latest` it is 2 r).
    Link 1 is full retraining on T_1, under InfLoRA with a designed A as all its links have; every later link starts
    from an A of its own (`AdapterSpec.start_seed`).
    """

    def __init__(
        self,
        setting: Setting,
        name: str,
        kind: Literal["sum", "sd", "orthogonal", "inf"],
        latest: bool = False,
        inherit: bool = False,
    ) -> None:
        """Name a row.

        Args:
            setting: the run.
            name: of the row.
            kind: see `Frozen`.
            latest: freeze the last period's adapter only, not all.
            inherit: start from the last period's own adapter rather than afresh.
        """
        self.setting = setting
        self.name = name
        self.kind = kind
        self.latest = latest
        self.inherit = inherit
        first = first_adapter(setting)
        self._chain = {1: replace(first, frozen=Frozen((), kind)) if kind == "inf" else first}

    def spec(self, t: int) -> AdapterSpec:
        """Return link t of the chain."""
        for i in range(len(self._chain) + 1, t + 1):
            earlier = tuple(self._chain[j] for j in ([i - 1] if self.latest else range(1, i)))
            rows = [Slice(i, "train"), Slice(i - 1, "validation")]
            link = self.setting.adapter(rows, i, init=self._chain[i - 1] if self.inherit else None)
            self._chain[i] = replace(link, frozen=Frozen(earlier, self.kind))
        return self._chain[t]

    def plan(self, t: int) -> Plan:
        """Return link t."""
        return Plan((self.spec(t),))


def row(
    name: str, kind: Literal["sum", "sd", "orthogonal", "inf"], latest: bool = False, inherit: bool = False
) -> Callable[[Setting], Cumulative]:
    """Return the factory of a `Cumulative` row, for `STRATEGIES`."""
    return lambda setting: Cumulative(setting, name, kind, latest, inherit)


CUMULATIVE: dict[str, Callable[[Setting], Cumulative]] = {
    "cumulative": row("cumulative", "sum"),
    "cumulative-latest-inherit": row("cumulative-latest-inherit", "sum", latest=True, inherit=True),
    "sd-lora": row("sd-lora", "sd"),
    "sd-lora-latest-inherit": row("sd-lora-latest-inherit", "sd", latest=True, inherit=True),
    "o-lora": row("o-lora", "orthogonal"),
    "inf-lora": row("inf-lora", "inf"),
}
"""The rows of this file by their names in a config; the latest-inherit ones are PESO's strongest rivals."""
