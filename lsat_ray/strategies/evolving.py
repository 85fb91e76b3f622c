"""One adapter that goes on from period to period: plain, held near its last state (PESO), or with replayed rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lsat_ray.adapters.spec import AdapterSpec, Regulariser
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.strategies.base import Plan, Setting, first_adapter


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
            self._chain[i] = replace(link, regulariser=self.regulariser, replay=self._buffer(i))
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


def row(name: str, regulariser: Regulariser | None = None, replay: float = 0.0) -> Callable[[Setting], Evolving]:
    """Return the factory of an `Evolving` row, for `STRATEGIES`."""
    return lambda setting: Evolving(setting, name, regulariser, replay)


LAMBDA = 2.0
"""PESO's weight (Instruments, and its launcher's default)."""

EVOLVING: dict[str, Callable[[Setting], Evolving]] = {
    "single-evolving": row("single-evolving"),
    "peso": row("peso", Regulariser("softmax-kl", LAMBDA, "sum")),
    "peso-mean": row("peso-mean", Regulariser("softmax-kl", LAMBDA, "mean")),
    "peso-l2": row("peso-l2", Regulariser("l2", LAMBDA, "sum")),
    "peso-orthogonal": row("peso-orthogonal", Regulariser("orthogonal", LAMBDA, "sum")),
    "replay": row("replay", replay=0.5),
}
"""The rows of this file by their names in a config; `peso-mean` is PESO's code, `peso` its equation."""
