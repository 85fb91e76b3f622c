"""Update strategies: rules that name adapters and a merge. A new one is a file and a line in `STRATEGIES`."""

from collections.abc import Callable
from dataclasses import replace

from lsat_ray.baselines.spec import LEARNERS
from lsat_ray.errors import LsatError
from lsat_ray.strategies.base import Learned, Plan, Setting, Spec, Strategy
from lsat_ray.strategies.cumulative import CUMULATIVE
from lsat_ray.strategies.evolving import EVOLVING
from lsat_ray.strategies.fine_tuning import FineTuning
from lsat_ray.strategies.full_retraining import FullRetraining
from lsat_ray.strategies.long_term import LongTerm
from lsat_ray.strategies.lsat import LsatEN, LsatENFull, LsatTA
from lsat_ray.strategies.merged import MERGED
from lsat_ray.strategies.short_term import ShortTerm
from lsat_ray.strategies.untrained import BookGPT, Frozen

Factory = Callable[[Setting], Strategy]
RULES: dict[str, Factory] = {"full-retraining": FullRetraining, "fine-tuning": FineTuning}
"""Update rules that LoRA and every classical learner share."""


def _with(learner: str, rule: Factory) -> Factory:
    return lambda setting: rule(replace(setting, learner=learner))


STRATEGIES: dict[str, Factory] = {
    **RULES,
    "short-term": ShortTerm,
    "long-term": LongTerm,
    "lsat-en": LsatEN,
    "lsat-en-full": LsatENFull,
    "lsat-ta": LsatTA,
    **MERGED,
    **EVOLVING,
    **CUMULATIVE,
    **{f"{learner}/{name}": _with(learner, rule) for learner in LEARNERS for name, rule in RULES.items()},
    BookGPT.name: BookGPT,
    Frozen.name: Frozen,
}
"""Every row that a config can name."""

__all__ = ["RULES", "STRATEGIES", "Learned", "Plan", "Setting", "Spec", "Strategy", "make"]


def make(setting: Setting) -> list[Strategy]:
    """Return the configured strategies under a setting, and the frozen backbone, which every table holds.

    Raises:
        LsatError: when a name is not in `STRATEGIES`.
    """
    names = list(dict.fromkeys((*setting.config.strategies, Frozen.name)))
    for name in names:
        if name not in STRATEGIES:
            raise LsatError(f"strategies: {name!r} is unknown; known are {', '.join(STRATEGIES)}")
    return [STRATEGIES[name](setting) for name in names]
