"""One optimizer step and one pass of validation, on every worker at once."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from torch.nn import functional

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded, collate, split_by_tokens
from lsat_ray.scoring.score import margins
from lsat_ray.training import penalty as penalties
from lsat_ray.training.engine import Elastic, Engine


def step_with_oom_retry(
    model: AdaptedBackbone,
    engine: Engine,
    train: Encoded,
    batch: np.ndarray,
    lr: float,
    micro_batches: int,
    penalty: penalties.Penalty | None,
    noise: tuple[int, int] | None,
) -> tuple[list[float], int]:
    """Take a step; where any rank's memory runs out, all repeat it in twice as many micro-batches.

    Returns:
        What `gradients` returns, and the micro-batches that it took.

    Raises:
        LsatError: when there is nothing left to halve, or the engine cannot repeat a step (DeepSpeed reduces gradients
            while it computes them, so a rank that fails leaves the others waiting).
    """
    while True:
        cause: torch.OutOfMemoryError | None = None
        value: list[float] = []
        try:
            value = gradients(model, engine, train, batch, micro_batches, penalty, noise)
        except torch.OutOfMemoryError as error:
            cause = error
        short = engine.any(cause is not None) if isinstance(engine, Elastic) else cause is not None
        if not short:
            engine.step(lr)
            return value, micro_batches
        if not isinstance(engine, Elastic) or micro_batches >= len(batch):
            raise LsatError(
                f"training: out of memory with {micro_batches} micro-batches a step; raise engine.micro_batches, "
                "set engine.checkpointing, or lower recipe.batch_size"
            ) from cause
        micro_batches = min(2 * micro_batches, len(batch))
        engine.restart(micro_batches)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()


def sharded_margins(model: AdaptedBackbone, engine: Engine, encoded: Encoded, batch_tokens: int) -> np.ndarray:
    """Return float32 [N], the margins of all targets, each computed by one worker."""
    model.eval()
    share = (0, 1) if len(engine.shares) == engine.world else (engine.rank, engine.world)
    index, margin = margins(engine.logits, encoded, model.device, batch_tokens, share=share)
    model.train()
    index, margin = engine.gather(index), engine.gather(margin)
    out = np.empty(len(encoded.row), dtype=np.float32)
    out[index] = margin
    return out


def gradients(
    model: AdaptedBackbone,
    engine: Engine,
    train: Encoded,
    batch: np.ndarray,
    micro_batches: int,
    penalty: penalties.Penalty | None = None,
    noise: tuple[int, int] | None = None,
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

    Raises:
        LsatError: when the loss is not finite, with the batch's row ids.
    """
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
            logits = engine.logits(micro)
            losses = functional.cross_entropy(logits, micro.label.long(), reduction="none")
            loss = present * (losses if micro.weight is None else micro.weight * losses).sum() / total
            if not torch.isfinite(loss):
                rows = train.row[micro.index].tolist()
                raise LsatError(
                    f"training: the loss is {loss.item()} on sample rows {rows}; lower recipe.lr or use bfloat16"
                )
            value += float(loss.detach())
            with penalty.added(pull, 1 / micro_batches) if penalty else nullcontext():
                engine.backward(loss)
        engine.end_share()
        values.append(value * engine.world)
    return values
