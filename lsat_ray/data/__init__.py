"""Logs, readers, windows, periods and the synthetic stream."""

from __future__ import annotations

from collections.abc import Callable

from lsat_ray.config import DataConfig, PeriodsConfig
from lsat_ray.data import synthetic
from lsat_ray.data.interactions import Interactions

SYNTHETIC_PERIOD = 500
"""Samples of a synthetic period when `data.keep_last` is not given."""


def _synthetic(data: DataConfig, periods: PeriodsConfig) -> Interactions:
    number = len(periods.dates) - 1 if periods.cut == "dates" else periods.number
    return synthetic.generate(data.synthetic, number, data.keep_last or SYNTHETIC_PERIOD * number, data.history)


READERS: dict[str, Callable[[DataConfig, PeriodsConfig], Interactions]] = {
    "synthetic": _synthetic,
}
"""Reader of every `data.format`."""


def load(data: DataConfig, periods: PeriodsConfig) -> Interactions:
    """Read the log that a config names.

    Raises:
        LsatError: naming file, row or key and the remedy.
    """
    return READERS[data.format](data, periods)
