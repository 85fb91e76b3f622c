"""One adapter that goes on from period to period: plain, held near its last state (PESO), or with replayed rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from lsat_ray.adapters.spec import AdapterSpec, Regulariser
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.strategies.base import CHOICE, Plan, Setting, first_adapter


class Evolving:
    """Warm-start from period t - 1 on T_t + V_{t-1}, the rows of fine-tuning, with a penalty or replayed rows.

    Unlike fine-tuning it does not fall back to the old adapter when no step beats it on V_t: PESO's code picks the
    best among evaluated steps only, and the fall-back would hide what the penalty does (it is zero at the old
    adapter). `single-evolving` is therefore PESO at lambda = 0, and against `fine-tuning` isolates the fall-back.
    """

    def __init__(
        self, setting: Setting, name: str, regulariser: Regulariser | None = None, replay: float = 0.0
    ) -> None:
        self.setting = setting
        self.name = name
        self.regulariser = regulariser
        self.replay = replay
        self._chain: dict[int, AdapterSpec] = {1: first_adapter(setting)}

    def spec(self, t: int) -> AdapterSpec:
        """Return link t of the chain."""
        for i in range(len(self._chain) + 1, t + 1):
            rows = [Slice(i, "train"), Slice(i - 1, "validation")]
            link = self.setting.adapter(rows, i, init=self._chain[i - 1])
            link = replace(link, regulariser=self.regulariser, replay=self._buffer(i))
            later = self.setting.config.peso.later_lr if self.regulariser else None
            self._chain[i] = replace(link, recipe=link.recipe.model_copy(update={"lr": later})) if later else link
        return self._chain[t]

    def plan(self, t: int) -> Plan:
        """Return link t."""
        return Plan((self.spec(t),))

    def _buffer(self, t: int) -> int:
        if not self.replay:
            return 0
        if not self.setting.samples:
            raise LsatError(f"strategy {self.name}: Setting.samples is empty; a buffer is a share of a period")
        return round(self.replay * self.setting.samples[t - 1])


class Peso:
    """PESO with the lambda that V_t prefers: one chain per lambda of `peso.lambdas`, of which the best is served.

    A chain keeps its lambda, so that no adapter depends on what was chosen; another may be served in every period.
    """

    def __init__(self, setting: Setting, name: str, reduction: Literal["sum", "mean"]) -> None:
        self.name = name
        self.lambdas = setting.config.peso.lambdas
        self._chains = [Evolving(setting, name, Regulariser("softmax-kl", w, reduction)) for w in self.lambdas]

    def plan(self, t: int) -> Plan:
        """Return link t of every chain, named by its lambda; period 1 knows no penalty."""
        if t == 1:
            return self._chains[0].plan(1)
        return Plan(tuple(chain.spec(t) for chain in self._chains), CHOICE, tuple((w,) for w in self.lambdas))


def row(name: str, regulariser: Regulariser | None = None, replay: float = 0.0) -> Callable[[Setting], Evolving]:
    """Return the factory of an `Evolving` row, for `STRATEGIES`."""
    return lambda setting: Evolving(setting, name, regulariser, replay)


LAMBDA = 2.0
"""Weight of the controls (PESO's on Instruments, and its launcher's default)."""

EVOLVING: dict[str, Callable[[Setting], Evolving | Peso]] = {
    "single-evolving": row("single-evolving"),
    "peso": lambda setting: Peso(setting, "peso", "sum"),
    "peso-mean": lambda setting: Peso(setting, "peso-mean", "mean"),
    "peso-l2": row("peso-l2", Regulariser("l2", LAMBDA, "sum")),
    "peso-orthogonal": row("peso-orthogonal", Regulariser("orthogonal", LAMBDA, "sum")),
    "replay": row("replay", replay=0.5),
}
"""The rows of this file by their names in a config; `peso-mean` is PESO's code, `peso` its equation."""
