"""Update rules of the generative task: which adapters after block t, and how they are merged (methods.md 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from lsat_ray.adapters.spec import Frozen, Regulariser
from lsat_ray.config import LoraSettings, PromptConfig, Recipe
from lsat_ray.data.periods import Slice
from lsat_ray.generative.spec import GenerativeSpec, Task

LAMBDAS = (0.5, 1, 2, 5, 8)
"""The grid that PESO's authors searched."""
WEIGHTS = tuple((round(k / 10, 1), round(1 - k / 10, 1)) for k in range(11))
"""(long, short) that LSAT tries on V_t; the first best wins."""


@dataclass(frozen=True)
class Setting:
    """What every spec of a run has in common."""

    backbone: str
    data: str
    task: Task
    lora: LoraSettings
    recipe: Recipe
    """Of block 0 and of full retraining."""
    later: Recipe
    """Of everything that trains on a later block alone."""
    seed: int

    def spec(self, t: int, **changes: Any) -> GenerativeSpec:
        """Return the spec that trains on T_t alone and is selected on V_t, with changes."""
        values: dict[str, Any] = {
            "backbone": self.backbone,
            "data": self.data,
            "train": (Slice(t, "train"),),
            "validation": (Slice(t, "validation"),),
            "prompt": PromptConfig(),
            "lora": self.lora,
            "recipe": self.recipe if t == 1 else self.later,
            "seed": self.seed,
            "task": self.task,
        }
        return GenerativeSpec(**(values | changes))


class Plan(NamedTuple):
    """What a rule wants after period t."""

    adapters: tuple[GenerativeSpec, ...]
    merge: Literal["single", "output-ensemble", "factor-arithmetic"] = "single"
    grid: tuple[tuple[float, ...], ...] = ((1.0,),)
    """Candidate weights; with more than one the likelihood of V_t decides, the first best wins."""


Rule = Callable[[Setting, int], Plan]


def pretrain(setting: Setting, t: int) -> Plan:
    """Serve the adapter of D_1 throughout: LSAT's long-term adapter with m = 1."""
    return Plan((setting.spec(1),))


def full_retraining(setting: Setting, t: int) -> Plan:
    """Train afresh on T_1..T_t."""
    train = tuple(Slice(i, "train") for i in range(1, t + 1))
    return Plan((setting.spec(t, train=train, recipe=setting.recipe),))


def short_term(setting: Setting, t: int) -> Plan:
    """Train afresh on T_t alone."""
    return Plan((setting.spec(t),))


def long_and_short(merge: Literal["output-ensemble", "factor-arithmetic"]) -> Rule:
    """Return LSAT on this task: the adapter of D_1 with that of T_t, the weight chosen on V_t."""
    return lambda setting, t: Plan((setting.spec(1), setting.spec(t)), merge, WEIGHTS)


def evolving(**changes: Any) -> Rule:
    """Return a chain in which each link starts from the one before, with a penalty or without."""

    def rule(setting: Setting, t: int) -> Plan:
        link = setting.spec(1)
        for i in range(2, t + 1):
            link = setting.spec(i, init=link, **changes)
        return Plan((link,))

    return rule


def peso(weight: float, reduction: Literal["sum", "mean"] = "sum", kind: Any = "softmax-kl") -> Rule:
    """Return PESO with lambda `weight`; `mean` over modules is the released code, `sum` the paper."""
    return evolving(regulariser=Regulariser(kind, weight, reduction))


def cumulative(kind: Literal["sum", "sd", "orthogonal", "inf"], latest: bool = False, inherit: bool = False) -> Rule:
    """Return a chain whose links stay, frozen, under the next; under InfLoRA the first has a designed A too.

    Args:
        kind: see `Frozen`.
        latest: freeze the newest link only, not all.
        inherit: start from the newest link's own adapter rather than afresh.
    """

    def rule(setting: Setting, t: int) -> Plan:
        chain = [setting.spec(1, frozen=Frozen((), kind)) if kind == "inf" else setting.spec(1)]
        for i in range(2, t + 1):
            frozen = Frozen(tuple(chain[-1:] if latest else chain), kind)
            chain.append(replace(setting.spec(i, init=chain[-1] if inherit else None), frozen=frozen))
        return Plan((chain[-1],))

    return rule


RULES: dict[str, Rule] = {
    "pretrain": pretrain,
    "full-retraining": full_retraining,
    "single-evolving": evolving(),
    **{f"peso({weight:g})": peso(weight) for weight in LAMBDAS},
    **{f"peso-mean({weight:g})": peso(weight, "mean") for weight in LAMBDAS},
    "peso-rank(2)": peso(2, kind="rank-kl"),
    "peso-output(2)": peso(2, kind="output-kl"),
    "prox-l2(2)": peso(2, kind="l2"),
    "prox-orthogonal(2)": peso(2, kind="orthogonal"),
    "sumlora-all": cumulative("sum"),
    "sumlora-latest": cumulative("sum", latest=True),
    "sumlora-all-inherit": cumulative("sum", inherit=True),
    "sumlora-latest-inherit": cumulative("sum", latest=True, inherit=True),
    "sd-lora": cumulative("sd"),
    "sd-lora-latest-inherit": cumulative("sd", latest=True, inherit=True),
    "o-lora": cumulative("orthogonal"),
    "inf-lora": cumulative("inf"),
    "short-term": short_term,
    "lsat-en": long_and_short("output-ensemble"),
    "lsat-ta": long_and_short("factor-arithmetic"),
}
"""Rules by the names of their rows."""

GRIDS = {family: tuple(f"{family}({weight:g})" for weight in LAMBDAS) for family in ("peso", "peso-mean")}
"""Rows that take the lambda whose first penalised link has the lowest loss on V_2, and keep it (by seed)."""
