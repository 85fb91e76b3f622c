"""What a fit minimises and what its validations measure: all in which two tasks differ. Here: the answer Yes or No."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch.nn import functional

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.errors import LsatError
from lsat_ray.evaluation.metrics import auc_or_log_loss
from lsat_ray.prompts.batch import Batch, Encoded
from lsat_ray.scoring.score import margins
from lsat_ray.training import selection
from lsat_ray.training.engine import Engine
from lsat_ray.training.frozen import own


class Objective(Protocol):
    """The task's part of a fit."""

    name: Literal["auc", "loss"]
    """Of the figure that a validation reports."""
    answers: int
    """Answers of a target; a batch has `recipe.batch_size` targets."""
    penalties: tuple[str, ...]
    """Kinds of regulariser that `extra` computes."""

    def start(self, model: AdaptedBackbone, initial: Adapter | None) -> Adapter | None:
        """Copy the initial weights into the training slot, which was reset; return them as they are worn there."""

    def loss(self, engine: Engine, batch: Batch, rows: Encoded) -> torch.Tensor:
        """Return the sum of the losses of a batch's answers; `rows` is what the batch was collated from."""

    def extra(self) -> torch.Tensor | None:
        """Return what else to minimise in the pass that `loss` made; no figure contains it."""

    def pull(self, rows: Encoded, sequences: int) -> tuple[float, float] | None:
        """Return what `extra` would be on rows under the present weights, and the norm of its gradient.

        Args:
            rows: the validation rows.
            sequences: most in one pass; as many as a training step takes at a time.
        """

    def validate(self, model: AdaptedBackbone, engine: Engine, rows: Encoded, batch_tokens: int) -> np.ndarray:
        """Measure the present weights on the validation rows."""

    def figure(self, rows: Encoded, measured: np.ndarray) -> float:
        """Return what is reported of a measurement."""

    def measure(self, select: str, rows: Encoded, measured: np.ndarray) -> float:
        """Return what the recipe's rule of selection compares, higher is better."""


class YesNo:
    """Cross-entropy over {No, Yes} at the answer's place, or over the vocabulary along the whole text.

    A validation measures the margins l_Yes - l_No under either.
    """

    name: Literal["auc", "loss"] = "auc"
    answers = 1
    penalties: tuple[str, ...] = ()

    def __init__(self, over: Literal["answer", "language"] = "answer") -> None:
        """Say what the loss is over (`recipe.loss`)."""
        self.over = over

    def start(self, model: AdaptedBackbone, initial: Adapter | None) -> Adapter | None:
        if initial is None:
            return None
        initial = own(initial, model.lora.rank)
        model.wear(initial)
        return initial

    def loss(self, engine: Engine, batch: Batch, rows: Encoded) -> torch.Tensor:
        if self.over == "language":
            losses = engine.logits(replace(batch, language=True))
        else:
            losses = functional.cross_entropy(engine.logits(batch), batch.label.long(), reduction="none")
        return (losses if batch.weight is None else batch.weight * losses).sum()

    def extra(self) -> torch.Tensor | None:
        return None

    def pull(self, rows: Encoded, sequences: int) -> tuple[float, float] | None:
        return None

    def validate(self, model: AdaptedBackbone, engine: Engine, rows: Encoded, batch_tokens: int) -> np.ndarray:
        return sharded_margins(model, engine, rows, batch_tokens)

    def figure(self, rows: Encoded, measured: np.ndarray) -> float:
        return auc_or_log_loss(rows.label, measured)

    def measure(self, select: str, rows: Encoded, measured: np.ndarray) -> float:
        return selection.measure(select, rows.label, measured)


def sharded_margins(model: AdaptedBackbone, engine: Engine, encoded: Encoded, batch_tokens: int) -> np.ndarray:
    """Return float32 [N], the margins of all targets, each computed by one worker.

    Raises:
        LsatError: when memory runs out where every pass is one of all workers (ZeRO-3), so that none can be split.
    """
    model.eval()
    share = (0, 1) if len(engine.shares) == engine.world else (engine.rank, engine.world)

    def logits(batch: Batch) -> torch.Tensor:
        try:
            return engine.logits(batch)
        except torch.OutOfMemoryError as error:
            if not engine.splits:
                raise
            raise LsatError("scoring: out of memory under ZeRO stage 3; lower engine.batch_tokens") from error

    index, margin = margins(logits, encoded, model.device, batch_tokens, share=share)
    model.train()
    index, margin = engine.gather(index), engine.gather(margin)
    out = np.empty(len(encoded.row), dtype=np.float32)
    out[index] = margin
    return out
