"""Readers of logs, the synthetic stream, samples and periods."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lsat_ray.config import DataConfig
from lsat_ray.data import amazon, movielens, recbole, synthetic
from lsat_ray.data.interactions import Interactions, deduplicate
from lsat_ray.errors import LsatError

SYNTHETIC_SAMPLES = 10_000
"""Samples of the synthetic stream after its warm-up when `data.keep_last` is not given."""


def _synthetic(data: DataConfig) -> Interactions:
    return synthetic.generate(data.synthetic, data.keep_last or SYNTHETIC_SAMPLES, data.history)


def _movielens(data: DataConfig) -> Interactions:
    return movielens.read(_path(data), data.positive_above)


def _amazon(data: DataConfig) -> Interactions:
    metadata = expand(data.metadata) if data.metadata else None
    return amazon.read(_path(data), metadata, data.positive_above, data.amazon)


def _recbole(data: DataConfig) -> Interactions:
    return recbole.read(_path(data), data.positive_above)


def _path(data: DataConfig) -> Path:
    if not data.path:
        raise LsatError(f"data.path: missing; format {data.format!r} reads a log, say where it lies")
    return expand(data.path)


READERS: dict[str, Callable[[DataConfig], Interactions]] = {
    "synthetic": _synthetic,
    "movielens": _movielens,
    "amazon": _amazon,
    "recbole": _recbole,
}
"""Reader of every `data.format`."""


def load(data: DataConfig) -> Interactions:
    """Read the log that a config names; exact duplicates are treated as `data.duplicates` says.

    Raises:
        LsatError: naming file, row or key and the remedy.
    """
    if data.format not in READERS:
        raise LsatError(f"data.format: {data.format!r} is a log of the next-item task; run it with `lsat-ray study`")
    return deduplicate(READERS[data.format](data), data.duplicates)


def expand(path: str) -> Path:
    """Expand `~` and `$VARIABLES`; an unset variable is an error that names it."""
    expanded = os.path.expandvars(os.path.expanduser(path))
    if "$" in expanded:
        raise LsatError(f"data.path: {path}: the environment variable in it is not set; export it or give the folder")
    return Path(expanded)
