"""What an adapter of the generative task is a pure function of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.generative.blocks import Split


@dataclass(frozen=True)
class Task:
    """How a log becomes targets and a loss."""

    split: Split = "leave-two-out"
    """What the parts of a period are."""
    history: int = 20
    """Most items before a target."""
    temperature: float = 0.8
    """The loss divides the logits by it (PESO); the search does not."""
    train_codes: bool = True
    """Whether the codes' rows of embedding and head are part of the adapter."""


@dataclass(frozen=True)
class Proximity:
    """PESO's other penalties, which need more than whole factors; the reference is the spec's initial adapter."""

    kind: Literal["rank-kl", "output-kl"]
    """`rank-kl`: softmax-KL of each rank's vector apart; `output-kl`: KL of the softmax of a module's LoRA output."""
    weight: float
    """lambda."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the adapted modules."""


@dataclass(frozen=True, eq=False, repr=False)
class GenerativeSpec(AdapterSpec):
    """An `AdapterSpec` of the generative task: `Slice.period` p is block p - 1, `prompt` plays no part."""

    task: Task = Task()
    proximity: Proximity | None = None

    def manifest(self) -> dict[str, Any]:
        """Return the spec as JSON-ready values."""
        proximity = asdict(self.proximity) if self.proximity else None
        return {**super().manifest(), "task": asdict(self.task), "proximity": proximity}

    @property
    def start_seed(self) -> int:
        """Return the seed of the initial A: its own for each link of a cumulative chain, else the spec's."""
        if self.frozen is None:
            return self.seed
        return int(np.random.SeedSequence([self.seed, self.last_period]).generate_state(1, np.uint64)[0])
