"""What an update strategy is: a rule that names adapters and a merge, and trains nothing itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.baselines.spec import ClassicalSpec, named
from lsat_ray.config import Experiment
from lsat_ray.data.periods import Slice
from lsat_ray.scoring.model import CLASSICAL

Spec = AdapterSpec | ClassicalSpec
"""What a model is a pure function of: a LoRA adapter of the backbone, or a recommender without a language model."""


@dataclass(frozen=True)
class Setting:
    """What every spec of a run has in common."""

    backbone: str
    """Fingerprint of the backbone."""
    data: str
    """Fingerprint of the periods."""
    config: Experiment
    seed: int
    samples: tuple[int, ...] = ()
    """Samples of D_1..D_T; needed by strategies whose buffers are a share of a period."""
    learner: str | None = None
    """One of `baselines.spec.LEARNERS` that the rules are applied to; None: LoRA on the backbone."""

    def name(self, rule: str) -> str:
        """Return the row's name: the rule's, behind that of a classical learner (`mf/fine-tuning`)."""
        return rule if self.learner is None else f"{self.learner}/{rule}"

    def spec(self, train: Sequence[Slice], validation: int, init: Spec | None = None, keep_old: bool = False) -> Spec:
        """Return a spec of the setting's learner.

        Args:
            train: slices to train on.
            validation: period whose V_t selects the step.
            init: model to start from.
            keep_old: return `init` when nothing beats it on V_t.
        """
        if self.learner is None:
            assert init is None or isinstance(init, AdapterSpec)
            return self.adapter(train, validation, init, keep_old)
        assert init is None or isinstance(init, ClassicalSpec)
        model, recipe = named(self.learner, self.config.baselines)
        return ClassicalSpec(
            model=model,
            recipe=recipe,
            data=self.data,
            train=tuple(train),
            validation=(Slice(validation, "validation"),),
            seed=self.seed,
            warmup=init is None,  # the nano backbone sees the warm-up too; a chain has seen it in its first link
            init=init,
            keep_old=keep_old,
            past=self.config.reclora.past if model == "din" else None,
        )

    def adapter(
        self, train: Sequence[Slice], validation: int, init: AdapterSpec | None = None, keep_old: bool = False
    ) -> AdapterSpec:
        """Return the spec of a LoRA adapter, with the run's prompt, LoRA shape, recipe and seed."""
        return AdapterSpec(
            backbone=self.backbone,
            data=self.data,
            train=tuple(train),
            validation=(Slice(validation, "validation"),),
            prompt=self.config.prompt,
            lora=self.config.lora,
            recipe=self.config.recipe.paced(fresh=init is None),
            seed=self.seed,
            init=init,
            keep_old=keep_old,
        )


@dataclass(frozen=True)
class Learned:
    """Merge weights that are learned by gradient, not chosen from a grid (`training.coefficients`)."""

    adapters: tuple[AdapterSpec, ...]
    """Whose merge is fitted: the plan's own adapters, or an earlier period's (SML, methods.md 7.2)."""
    slices: tuple[Slice, ...]
    """Slices whose loss is minimised; none of them may be newer than the plan's period."""
    pull: float = 0.1
    """Weight of mean((w - 1/M)^2), the L2 pull towards the uniform average of M adapters."""


CHOICE = "choice"
"""Merge of a plan that serves one of its adapters: candidate i of the grid stands for adapter i."""


@dataclass(frozen=True)
class Plan:
    """What a strategy wants after period t."""

    adapters: tuple[Spec, ...]
    """In the order of the merge's weights."""
    merge: str = "single"
    """As `scoring.model.Model.merge`, or `CHOICE`, after which a single adapter is served."""
    grid: tuple[tuple[float, ...], ...] = ((1.0,),)
    """Candidate weights; with more than one, V_t decides (`search.select`)."""
    space: str = "probability"
    """What an output ensemble averages."""
    learned: Learned | None = None
    """With it the grid is empty: the weights are learned, one per (adapter, module), or those of a gate."""

    def specs(self) -> tuple[Spec, ...]:
        """Return every model that must exist before the plan can be carried out."""
        return self.adapters + (self.learned.adapters if self.learned else ())

    @property
    def digest(self) -> str:
        """SHA-256 of all that the plan says: what was decided under another plan does not count for this one."""
        learned = self.learned and (
            [s.digest for s in self.learned.adapters],
            [tuple(s) for s in self.learned.slices],
            self.learned.pull,
        )
        parts = ([s.digest for s in self.adapters], self.merge, self.grid, self.space, learned)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def alone(spec: Spec) -> Plan:
    """Return the plan that serves one model as it is."""
    return Plan((spec,), "single" if isinstance(spec, AdapterSpec) else CLASSICAL)


class Strategy(Protocol):
    """One update strategy under one setting."""

    name: str
    """Its row in every table, such as `lsat-en(10)`."""

    def plan(self, t: int) -> Plan | None:
        """Return what to serve after period t, or None where the strategy is not defined yet."""


def full_retraining(setting: Setting, t: int) -> Spec:
    """Return a fresh model of T_1..T_t plus V_1..V_{t-1} (methods.md 2)."""
    return setting.spec(*_all_history(t))


def first_adapter(setting: Setting) -> AdapterSpec:
    """Return the adapter that chains of adapters begin with: full retraining in period 1."""
    return setting.adapter(*_all_history(1))


def short_term(setting: Setting, t: int) -> AdapterSpec:
    """Return a fresh adapter of T_t alone (LSAT equation 1)."""
    return setting.adapter([Slice(t, "train")], t)


def long_and_short(setting: Setting, t: int, m: int) -> tuple[AdapterSpec, AdapterSpec]:
    """Return (long-term, short-term) for period t; the long-term adapter is full retraining at m, then held."""
    return setting.adapter(*_all_history(min(t, m))), short_term(setting, t)


def pairs(grid: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Return (w, 1 - w) for every w of the grid, exact in decimal."""
    return tuple((round(w, 10), round(1.0 - w, 10)) for w in grid)


def _all_history(t: int) -> tuple[list[Slice], int]:
    """Return the slices T_1..T_t and V_1..V_{t-1}, and t."""
    return [Slice(i, "train") for i in range(1, t + 1)] + [Slice(i, "validation") for i in range(1, t)], t
