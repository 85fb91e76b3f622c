"""What an adapter of the generative task is a pure function of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

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


@dataclass(frozen=True, eq=False, repr=False)
class GenerativeSpec(AdapterSpec):
    """An `AdapterSpec` of the generative task: `Slice.period` p is block p - 1, `prompt` plays no part."""

    task: Task = Task()

    def manifest(self) -> dict[str, Any]:
        """Return the spec as JSON-ready values."""
        return {**super().manifest(), "task": asdict(self.task)}
