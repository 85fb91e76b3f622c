"""The progress of a fit, and its form on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lsat_ray.adapters.lora import Adapter
from lsat_ray.training.selection import Candidate


@dataclass
class Progress:
    """The mutable state of one fit beside weights and optimizer."""

    order: np.random.Generator
    """Draws the order of each epoch."""
    micro_batches: int
    """Micro-batches per step; more than configured after memory ran out."""
    epoch: int = 0
    drawn: dict[str, Any] = field(default_factory=dict)
    """State of `order` before this epoch was drawn."""
    batch: int = 0
    """Batches of this epoch that are done: the sampler's cursor."""
    step: int = 0
    seen: int = 0
    """Targets that went through a step."""
    waited: int = 0
    """Validations since the best one."""
    best: float = -np.inf
    """Best measure of a validation so far (`selection.measure`)."""
    losses: list[list[float]] = field(default_factory=list)
    """Of the steps since the last validation, by share of this worker."""
    history: list[tuple[int, float, float]] = field(default_factory=list)
    pulls: list[tuple[int, float, float]] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    """Among which the recipe's rule chooses, in the order of their steps."""
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "score": 0.0})

    def rewind(self) -> None:
        """Set the generator back to the beginning of this epoch, to draw the epoch again."""
        self.order.bit_generator.state = self.drawn

    def pack(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return tensors and JSON-ready facts."""
        tensors = {}
        for number, one in enumerate(self.candidates):
            tensors[f"margin.{number}"] = torch.from_numpy(one.margin)
            tensors |= {f"candidate.{number}.{k}": v for k, v in one.adapter.state.items()}
        names = ("micro_batches", "epoch", "drawn", "batch", "step", "seen", "waited", "losses", "history", "pulls")
        facts = {name: getattr(self, name) for name in (*names, "seconds")}
        facts["best"] = self.best if self.candidates else None  # JSON has no infinity
        facts["candidates"] = [(c.step, c.adapter.rank, c.adapter.alpha) for c in self.candidates]
        return tensors, facts

    def unpack(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Load what `pack` returned."""
        for name, value in facts.items():
            if name not in ("best", "candidates"):
                setattr(self, name, value)
        self.history, self.pulls = ([(int(s), x, y) for s, x, y in facts[n]] for n in ("history", "pulls"))
        self.best = -np.inf if facts["best"] is None else facts["best"]
        self.candidates = []
        for number, (step, rank, alpha) in enumerate(facts["candidates"]):
            state = under(tensors, f"candidate.{number}.")
            self.candidates.append(Candidate(step, Adapter(state, rank, alpha), tensors[f"margin.{number}"].numpy()))


def under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
