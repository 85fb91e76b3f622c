"""Update strategies: rules that name adapters and a merge. A new one is a file and a line in `STRATEGIES`."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from lsat_ray.baselines.spec import LEARNERS
from lsat_ray.errors import LsatError
from lsat_ray.strategies.base import CHOICE, Learned, Plan, Setting, Spec, Strategy
from lsat_ray.strategies.cumulative import CUMULATIVE
from lsat_ray.strategies.derived import GATES, Derived, Gate, Hedge, WithSide, side_of
from lsat_ray.strategies.evolving import EVOLVING
from lsat_ray.strategies.fine_tuning import FineTuning
from lsat_ray.strategies.full_retraining import FullRetraining
from lsat_ray.strategies.long_term import LongTerm
from lsat_ray.strategies.lsat import LsatEN, LsatENFull, LsatTA
from lsat_ray.strategies.merged import MERGED
from lsat_ray.strategies.recency import Recency
from lsat_ray.strategies.reclora import RECLORA_ROWS
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
    Recency.name: Recency,
    **MERGED,
    **EVOLVING,
    **CUMULATIVE,
    **RECLORA_ROWS,
    **{f"{learner}/{name}": _with(learner, rule) for learner in LEARNERS for name, rule in RULES.items()},
    BookGPT.name: BookGPT,
    Frozen.name: Frozen,
    Hedge.name: Hedge,
    **GATES,
}
"""Every row that a config can name; `+side` or `+side@period` behind a name gives its row with a side head."""

__all__ = [
    "CHOICE",
    "RULES",
    "STRATEGIES",
    "Derived",
    "Gate",
    "Learned",
    "Plan",
    "Setting",
    "Spec",
    "Strategy",
    "WithSide",
]
__all__ += ["make"]


def make(setting: Setting) -> list[Strategy]:
    """Return the configured strategies under a setting, and the frozen backbone, which every table holds.

    Raises:
        LsatError: when a name is not in `STRATEGIES`, or a row with a side head or a gate is named without its base.
    """
    names = list(dict.fromkeys((*setting.config.strategies, Frozen.name)))
    made: dict[str, Strategy] = {name: STRATEGIES[name](setting) for name in names if name in STRATEGIES}
    for name in names:
        if name not in made:
            made[name] = _with_side(name, made)
        elif name in GATES and "lsat-en" not in names:
            raise LsatError(f"strategies: {name!r} weighs the adapters of 'lsat-en'; name it too")
    return [made[name] for name in names]


def _with_side(name: str, made: Mapping[str, Strategy]) -> WithSide:
    base, suffix = side_of(name) or (None, "")
    if base is None:
        raise LsatError(f"strategies: {name!r} is unknown; known are {', '.join(STRATEGIES)}")
    if base not in made or isinstance(made[base], Hedge | Gate):
        raise LsatError(f"strategies: {name!r} is computed from the scores of {base!r}; name it too, a row with models")
    return WithSide(made[base], suffix)
