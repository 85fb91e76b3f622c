"""Where a fit stands: all that decides its further course, and its form on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lsat_ray.adapters.lora import Adapter


@dataclass
class Progress:
    """The mutable state of one fit beside weights, optimizer and dropout's generator."""

    order: np.random.Generator
    """Draws the order of each epoch."""
    micro_batches: int
    """In force; more than configured after memory ran out."""
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
    losses: list[float] = field(default_factory=list)
    """Since the last validation."""
    history: list[tuple[int, float, float]] = field(default_factory=list)
    pulls: list[tuple[int, float, float]] = field(default_factory=list)
    best: Adapter | None = None
    best_auc: float = -np.inf
    best_margin: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    best_step: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "score": 0.0})

    def offer(self, auc: float, margin: np.ndarray, adapter: Adapter) -> None:
        """Keep an adapter when it is the best so far; the first of equals stays."""
        self.best_auc, self.best_margin, self.best_step, self.best = auc, margin, self.step, adapter

    def rewind(self) -> None:
        """Bring the generator to where this epoch begins, to draw it again."""
        self.order.bit_generator.state = self.drawn

    def pack(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return tensors and JSON-ready facts."""
        tensors = {"margin": torch.from_numpy(self.best_margin)}
        if self.best is not None:
            tensors |= {f"best.{k}": v for k, v in self.best.state.items()}
        names = ("micro_batches", "epoch", "drawn", "batch", "step", "seen", "waited", "losses", "history", "pulls")
        facts = {name: getattr(self, name) for name in (*names, "best_step", "seconds")}
        facts["best"] = None if self.best is None else [self.best.rank, self.best.alpha, self.best_auc]
        return tensors, facts

    def unpack(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Take over what `pack` gave."""
        for name, value in facts.items():
            if name != "best":
                setattr(self, name, value)
        self.history, self.pulls = ([(int(s), x, y) for s, x, y in facts[n]] for n in ("history", "pulls"))
        self.best_margin = tensors["margin"].numpy()
        if facts["best"] is not None:
            rank, alpha, self.best_auc = facts["best"]
            state = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
            self.best = Adapter(state, rank, alpha)
