"""Rows that serve nothing themselves: they are computed from what other rows scored, and planned nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from lsat_ray.baselines.spec import SIDES
from lsat_ray.errors import LsatError
from lsat_ray.strategies.base import Plan, Setting, Strategy


class Derived:
    """A row without adapters of its own."""

    name: str

    def plan(self, t: int) -> Plan | None:
        """Return None: there is nothing to train and nothing to serve."""
        del t
        return None


class Hedge(Derived):
    """The mixture of everything that is served, weighted by log-loss on the tested periods behind (`scoring/hedge`)."""

    name = "hedge"

    def __init__(self, setting: Setting) -> None:
        del setting


class Gate(Derived):
    """LSAT's two adapters under a weight for each sample, from user and item features (`scoring/gate`)."""

    def __init__(self, setting: Setting, row: str, features: bool) -> None:
        """Name the row.

        Args:
            setting: of the experiment; `lsat-en` must be a row of it, whose adapters these are.
            row: its name in a config.
            features: whether the weight sees the features; without them it is one alpha, fitted on the same rows.
        """
        m = setting.config.replay.long_periods
        self.base, self.name, self.features = f"lsat-en({m})", f"{row}({m})", features


GATES: dict[str, Callable[[Setting], Gate]] = {
    "lsat-gate": lambda setting: Gate(setting, "lsat-gate", features=True),
    "lsat-alpha": lambda setting: Gate(setting, "lsat-alpha", features=False),
}
"""Rows that need `lsat-en`, by their names in a config."""


class WithSide(Derived):
    """A logistic head over another row's margin and the side features (`baselines/side_head`)."""

    def __init__(self, base: Strategy, suffix: str) -> None:
        """Name the row after its base.

        Args:
            base: a row of the same table.
            suffix: a key of `SIDES`.
        """
        self.base = base.name
        self.name = base.name + suffix
        self.side: Literal["online", "period"] = SIDES[suffix]


def side_of(name: str) -> tuple[str, str] | None:
    """Return the base's name in a config and the suffix of a row such as `lsat-en+side`, None for any other row.

    Raises:
        LsatError: for a classical row, whose side features go into the model itself.
    """
    suffix = next((s for s in SIDES if name.endswith(s)), None)
    if suffix is None:
        return None
    base = name.removesuffix(suffix)
    if "/" in base:
        learner, _, rule = base.partition("/")
        raise LsatError(f"strategies: {name!r}: a classical row takes side features as {learner}{suffix}/{rule}")
    return base, suffix
