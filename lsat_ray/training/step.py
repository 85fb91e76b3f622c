"""One optimizer step, on every worker at once."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded, collate, split_by_tokens
from lsat_ray.training import penalty as penalties
from lsat_ray.training.engine import Elastic, Engine
from lsat_ray.training.objective import Objective, YesNo


class OutOfMemory(LsatError):
    """A rank's memory ran out and the others cannot repeat the step with it: the fit must begin again on all."""

    def __init__(self, micro_batches: int, more: int) -> None:
        """Say what was tried.

        Args:
            micro_batches: of the step that did not fit.
            more: of a step that may fit.
        """
        super().__init__(_told(micro_batches))
        self.micro_batches = more


def step_with_oom_retry(
    model: AdaptedBackbone,
    engine: Engine,
    train: Encoded,
    batch: np.ndarray,
    lr: float,
    micro_batches: int,
    penalty: penalties.Penalty | None,
    noise: tuple[int, int] | None,
    objective: Objective,
) -> tuple[list[float], int]:
    """Take a step; where any rank's memory runs out, all repeat it in twice as many micro-batches.

    Returns:
        What `gradients` returns, and the micro-batches that it took.

    Raises:
        OutOfMemory: when the engine cannot repeat a step (DeepSpeed reduces gradients while it computes them, so a rank
            that fails leaves the others waiting in a collective); the caller ends the ranks and begins the fit again.
        LsatError: when there is nothing left to halve.
    """
    while True:
        cause: torch.OutOfMemoryError | None = None
        value: list[float] = []
        try:
            value = gradients(model, engine, train, batch, micro_batches, penalty, noise, objective)
        except torch.OutOfMemoryError as error:
            cause = error
        short = engine.any(cause is not None) if isinstance(engine, Elastic) else cause is not None
        if not short:
            engine.step(lr)
            return value, micro_batches
        if micro_batches >= len(batch):
            raise LsatError(_told(micro_batches)) from cause
        more = min(2 * micro_batches, len(batch))
        if not isinstance(engine, Elastic):
            raise OutOfMemory(micro_batches, more) from cause
        micro_batches = more
        engine.restart(micro_batches)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()


def gradients(
    model: AdaptedBackbone,
    engine: Engine,
    train: Encoded,
    batch: np.ndarray,
    micro_batches: int,
    penalty: penalties.Penalty | None = None,
    noise: tuple[int, int] | None = None,
    objective: Objective | None = None,
) -> list[float]:
    """Add up this worker's gradients of a global batch's mean loss; return an estimate of it per share of its own.

    The estimates are without the penalty; over all shares their mean is the loss.

    Where the rows have weights (`Encoded.weight`, 1 on average over the rows, not over a batch), each loss has its own.

    Args:
        model: the backbone with its training slot.
        engine: has taken the slot (`begin`); its `step` comes next.
        train: the rows.
        batch: int [B], sequences of the global batch.
        micro_batches: pieces of a share.
        penalty: added to the loss.
        noise: (seed, step) of the dropout masks.
        objective: of the task; None is `YesNo`.

    Raises:
        LsatError: when the loss is not finite, with the batch's row ids.
    """
    objective = objective or YesNo()
    model.train()
    parts = split_by_tokens(batch, train.lengths, engine.world)
    total = float(train.targets[batch].sum())
    values = []
    pull: dict[str, torch.Tensor] = {}
    if penalty:
        with engine.whole(model):
            _, pull = penalty.gradient()
    for share in engine.shares:
        value = 0.0
        for part in split_by_tokens(parts[share], train.lengths, micro_batches):
            present = 1.0 if len(part) else 0.0  # a worker without rows still takes part in the collective step
            micro = collate(train, part if len(part) else batch[:1], noise=noise).to(model.device)
            loss = present * objective.loss(engine, micro, train) / total
            if not torch.isfinite(loss):
                rows = list(dict.fromkeys(train.row[micro.index].tolist()))
                raise LsatError(
                    f"training: the loss is {loss.item()} on sample rows {rows}; lower recipe.lr or use bfloat16"
                )
            value += float(loss.detach())
            if (extra := objective.extra()) is not None:
                loss = loss + extra / micro_batches
            with penalty.added(pull, 1 / micro_batches) if penalty else nullcontext():
                engine.backward(loss)
        engine.end_share()
        values.append(value * engine.world)
    return values


def _told(micro_batches: int) -> str:
    return (
        f"training: out of memory with {micro_batches} micro-batches a step; raise engine.micro_batches, "
        "set engine.checkpointing, or lower recipe.batch_size"
    )
