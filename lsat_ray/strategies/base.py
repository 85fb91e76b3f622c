"""What an update strategy is: a rule that names adapters and a merge, and trains nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.config import Experiment
from lsat_ray.data.periods import Slice


@dataclass(frozen=True)
class Setting:
    """What every spec of a run has in common."""

    backbone: str
    """Fingerprint of the backbone."""
    data: str
    """Fingerprint of the periods."""
    config: Experiment
    seed: int
    rows: tuple[int, ...] = ()
    """Rows of D_1..D_T; needed by strategies whose buffers are a share of a period."""

    def spec(
        self, train: Sequence[Slice], validation: int, init: AdapterSpec | None = None, keep_old: bool = False
    ) -> AdapterSpec:
        """Return a spec with the run's prompt, LoRA shape, recipe and seed.

        Args:
            train: slices to train on.
            validation: period whose V_t selects the step.
            init: adapter to start from.
            keep_old: return `init` when nothing beats it on V_t.
        """
        return AdapterSpec(
            backbone=self.backbone,
            data=self.data,
            train=tuple(train),
            validation=(Slice(validation, "validation"),),
            prompt=self.config.prompt,
            lora=self.config.lora,
            recipe=self.config.recipe,
            seed=self.seed,
            init=init,
            keep_old=keep_old,
        )


@dataclass(frozen=True)
class Fit:
    """Merge weights that are learned by gradient, not chosen from a grid (`adapters.coefficients`)."""

    adapters: tuple[AdapterSpec, ...]
    """Whose merge is fitted: the plan's own adapters, or an earlier period's (SML, methods.md 7.2)."""
    rows: tuple[Slice, ...]
    """Slices whose loss is minimised; none of them may be newer than the plan's period."""
    pull: float = 0.1
    """Weight of mean((w - 1/M)^2), the L2 pull towards the uniform average of M adapters."""


@dataclass(frozen=True)
class Plan:
    """What a strategy wants after period t."""

    adapters: tuple[AdapterSpec, ...]
    """In the order of the merge's weights."""
    merge: str = "single"
    """`single`, one of `adapters.model.OUTPUT_MERGES`, or a key of `adapters.merge.PARAMETER_MERGES`."""
    grid: tuple[tuple[float, ...], ...] = ((1.0,),)
    """Candidate weights; with more than one, V_t decides (the first best wins)."""
    space: str = "probability"
    """What an output ensemble averages."""
    fit: Fit | None = None
    """With it the grid is empty: the weights are `fit_coefficients` of it, one a (adapter, module), or `fit_gate`."""

    def specs(self) -> tuple[AdapterSpec, ...]:
        """Return every adapter that must exist before the plan can be carried out."""
        return self.adapters + (self.fit.adapters if self.fit else ())


class Strategy(Protocol):
    """One update strategy under one setting."""

    name: str
    """Its row in every table, such as `lsat-en(10)`."""

    def plan(self, t: int) -> Plan | None:
        """Return what to serve after period t, or None where the strategy is not defined yet."""


def full_retraining(setting: Setting, t: int) -> AdapterSpec:
    """Fresh LoRA on T_1..T_t plus V_1..V_{t-1} (methods.md 2)."""
    train = [Slice(i, "train") for i in range(1, t + 1)] + [Slice(i, "validation") for i in range(1, t)]
    return setting.spec(train, t)


def short_term(setting: Setting, t: int) -> AdapterSpec:
    """Fresh LoRA on T_t alone (LSAT equation 1)."""
    return setting.spec([Slice(t, "train")], t)


def long_and_short(setting: Setting, t: int, m: int) -> tuple[AdapterSpec, AdapterSpec]:
    """Return (long-term, short-term) for period t; the long-term adapter is full retraining at m, then held."""
    return full_retraining(setting, min(t, m)), short_term(setting, t)


def pairs(grid: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Return (w, 1 - w) for every w of the grid, exact in decimal."""
    return tuple((round(w, 10), round(1.0 - w, 10)) for w in grid)
