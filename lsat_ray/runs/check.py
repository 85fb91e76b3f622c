"""All that can be wrong before anything is started or written."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from lsat_ray import data
from lsat_ray.backbone.load import locate, settle
from lsat_ray.config import Experiment
from lsat_ray.data.interactions import Interactions
from lsat_ray.data.periods import Periods, cut
from lsat_ray.data.summary import LogSummary, summarise
from lsat_ray.errors import LsatError
from lsat_ray.strategies import Setting, make


@dataclass(frozen=True)
class Checked:
    """A config whose log was read and cut, and whose rows are known."""

    config: Experiment
    log: Interactions
    periods: Periods
    summary: LogSummary

    @property
    def samples(self) -> tuple[int, ...]:
        """Samples of D_1..D_T."""
        borders = self.periods.borders
        return tuple(b - a for a, b in itertools.pairwise(borders))

    def setting(self, backbone: str, seed: int) -> Setting:
        """Return what all specs of a seed share, given the backbone's fingerprint."""
        return Setting(backbone, self.periods.fingerprint, self.config, seed, self.samples)


def check(config: Experiment) -> Checked:
    """Read the log, cut it, and look at the rows and the backbone's place; no cluster is needed.

    Raises:
        LsatError: on bad input.
    """
    config = settle(config)
    log = data.load(config.data)
    periods = cut(log, config.data, config.periods)
    checked = Checked(config, log, periods, summarise(log, periods, config.first_test))
    strategies = make(checked.setting("", 0))
    names = [strategy.name for strategy in strategies]
    if config.study.against and config.study.against not in names:
        raise LsatError(f"study.against: no row is called {config.study.against!r}; the rows are {', '.join(names)}")
    for t in range(config.first_test - 1, checked.periods.count):
        for strategy in strategies:
            strategy.plan(t)
    if config.backbone.path != "nano":
        locate(config.backbone)
    return checked
