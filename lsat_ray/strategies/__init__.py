"""Update strategies: rules that name adapters and a merge. A new one is a file and a line in `STRATEGIES`."""

from collections.abc import Callable

from lsat_ray.errors import LsatError
from lsat_ray.strategies.base import Fit, Plan, Setting, Strategy
from lsat_ray.strategies.cumulative import CUMULATIVE
from lsat_ray.strategies.evolving import EVOLVING
from lsat_ray.strategies.fine_tuning import FineTuning
from lsat_ray.strategies.full_retraining import FullRetraining
from lsat_ray.strategies.long_term import LongTerm
from lsat_ray.strategies.lsat import LsatEN, LsatENFull, LsatTA
from lsat_ray.strategies.merged import MERGED
from lsat_ray.strategies.short_term import ShortTerm

STRATEGIES: dict[str, Callable[[Setting], Strategy]] = {
    "full-retraining": FullRetraining,
    "fine-tuning": FineTuning,
    "short-term": ShortTerm,
    "long-term": LongTerm,
    "lsat-en": LsatEN,
    "lsat-en-full": LsatENFull,
    "lsat-ta": LsatTA,
    **MERGED,
    **EVOLVING,
    **CUMULATIVE,
}

__all__ = ["STRATEGIES", "Fit", "Plan", "Setting", "Strategy", "make"]


def make(setting: Setting) -> list[Strategy]:
    """Return the configured strategies under a setting.

    Raises:
        LsatError: when a name is not in `STRATEGIES`.
    """
    for name in setting.config.strategies:
        if name not in STRATEGIES:
            raise LsatError(f"strategies: {name!r} is unknown; known are {', '.join(STRATEGIES)}")
    return [STRATEGIES[name](setting) for name in setting.config.strategies]
