"""Engines turn losses into optimizer steps: the protocol, and plain torch in one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import distributed

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.config import Recipe
from lsat_ray.prompts.batch import Batch


class Engine(Protocol):
    """What turns losses into optimizer steps. One instance trains one adapter after another."""

    kind: str
    """Name of the engine, with its ZeRO stage."""
    rank: int
    world: int
    """Shares that a global batch is split into."""
    shares: Sequence[int]
    """Those that this process computes: the one of its rank, or all where it stands for several workers."""
    splits: bool
    """Whether the frozen weights are split over the workers (ZeRO-3): the model then runs between `begin` and `finish`
    alone, on all of them at once."""

    def whole(self, model: AdaptedBackbone) -> AbstractContextManager[None]:
        """Gather the training slot's weights on every rank, to be read or written (ZeRO-3 splits them)."""

    def begin(self, model: AdaptedBackbone, recipe: Recipe, micro_batches: int) -> None:
        """Take the model's training slot, with a fresh optimizer."""

    def logits(self, batch: Batch) -> torch.Tensor:
        """Run the model forward."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of this worker's share of the global mean loss, times the number of workers.

        Gradients that are added besides (`Penalty.added`) are the same on every worker: `step` averages, so that they
        count once.
        """

    def end_share(self) -> None:
        """Hear that all losses of one share have gone backward."""

    def step(self, lr: float) -> None:
        """Average the gradients over shares, clip them, update the weights, clear the gradients."""

    def snapshot(self) -> Adapter:
        """Return the current weights, on every rank."""

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Return the ranks' arrays one after the other, on every rank."""

    def finish(self) -> None:
        """Release the model."""


@runtime_checkable
class Resumable(Protocol):
    """An engine whose optimizer can be saved and loaded, to the bit."""

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """Return the optimizer's tensors by name, CPU, on every rank."""

    def load_optimizer_state(self, state: dict[str, torch.Tensor]) -> None:
        """Load what `optimizer_state` returned; call it after `begin`."""


@runtime_checkable
class Elastic(Protocol):
    """An engine that can repeat a step in smaller micro-batches."""

    def any(self, mine: bool) -> bool:
        """Return whether `mine` is true on any rank."""

    def restart(self, micro_batches: int) -> None:
        """Drop this step's gradients; from now on a step has `micro_batches` micro-batches."""


class TorchEngine:
    """One process, plain torch; it can compute the shares of several workers, one after the other.

    What it ends with is then what these workers under `DataParallel` end with: the same sums in the same order. To the
    byte up to two workers, beyond that up to the order in which a collective adds.
    """

    kind = "torch"
    rank = 0
    splits = False

    def __init__(self, workers: int = 1) -> None:
        self.world = workers
        self.shares: Sequence[int] = range(workers)

    def whole(self, model: AdaptedBackbone) -> AbstractContextManager[None]:
        return nullcontext()

    def begin(self, model: AdaptedBackbone, recipe: Recipe, micro_batches: int) -> None:
        self._model = model
        self._parameters = list(model.trainable().values())
        for parameter in self._parameters:
            parameter.grad = None
        self._optimizer = torch.optim.AdamW(self._parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self._clip = recipe.clip
        self._sum: torch.Tensor | None = None

    def logits(self, batch: Batch) -> torch.Tensor:
        return self._model(batch)

    def backward(self, loss: torch.Tensor) -> None:
        (loss * self.world).backward()

    def end_share(self) -> None:
        if self.world == 1:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self._parameters])
        self._sum = flat if self._sum is None else self._sum + flat
        self._optimizer.zero_grad(set_to_none=True)

    def average(self) -> None:
        """Make the mean over the shares the gradient."""
        if self._sum is None:
            return
        mean = self._sum / self.world
        for parameter, grad in zip(self._parameters, mean.split([p.numel() for p in self._parameters]), strict=True):
            parameter.grad = grad.view_as(parameter).clone()
        self._sum = None

    def step(self, lr: float) -> None:
        self.average()
        torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        states = [self._optimizer.state[p] for p in self._parameters]
        return {f"{i}.{name}": value for i, state in enumerate(states) for name, value in state.items()}

    def load_optimizer_state(self, state: dict[str, torch.Tensor]) -> None:
        tree = self._optimizer.state_dict()
        tree["state"] = {}
        for key, value in state.items():
            number, _, name = key.partition(".")
            tree["state"].setdefault(int(number), {})[name] = value
        self._optimizer.load_state_dict(tree)

    def any(self, mine: bool) -> bool:
        return mine

    def restart(self, micro_batches: int) -> None:
        self._sum = None
        self._optimizer.zero_grad(set_to_none=True)

    def snapshot(self) -> Adapter:
        return self._model.snapshot()

    def gather(self, values: np.ndarray) -> np.ndarray:
        return values

    def finish(self) -> None:
        del self._model, self._parameters, self._optimizer


class DataParallel(TorchEngine):
    """Plain torch on every rank of a group that `torch.distributed` has already formed.

    Only LoRA weights are trained, so the gradients of a whole step fit one message: they are averaged once per step,
    after accumulation, and no rank waits for another before.
    """

    kind = "data-parallel"

    def __init__(self) -> None:
        super().__init__(distributed.get_world_size())
        self.rank = distributed.get_rank()
        self.shares = [self.rank]

    def average(self) -> None:
        if self._sum is not None:
            distributed.all_reduce(self._sum)
        super().average()

    def any(self, mine: bool) -> bool:
        flag = torch.tensor([float(mine)], device=self._parameters[0].device)
        distributed.all_reduce(flag)
        return bool(flag.item())

    def gather(self, values: np.ndarray) -> np.ndarray:
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, values)
        return np.concatenate(parts)
