"""Fit one adapter of the generative task: next-code cross-entropy in the step loop of `training/fit.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.config import EngineConfig
from lsat_ray.errors import LsatError
from lsat_ray.generative.blocks import Blocks
from lsat_ray.generative.encode import encode_targets
from lsat_ray.generative.model import GenerativeModel, joined, parted
from lsat_ray.generative.penalty import OutputKl
from lsat_ray.generative.spec import GenerativeSpec
from lsat_ray.prompts.batch import Batch, Encoded, collate, token_budget_batches
from lsat_ray.training import fit as training
from lsat_ray.training.checkpoint import Checkpointer
from lsat_ray.training.engine import Engine, TorchEngine
from lsat_ray.training.fit import Fitted
from lsat_ray.training.frozen import own


def fit(
    spec: GenerativeSpec,
    model: GenerativeModel,
    blocks: Blocks,
    settings: EngineConfig,
    initial: Adapter | None = None,
    frozen: Sequence[Adapter] = (),
    progress: Callable[[str], None] | None = None,
    checkpoint: Checkpointer | None = None,
) -> Fitted:
    """Fit the adapter that a spec names, in one process (see `training.fit.fit`).

    The figure of a validation is the loss in nats a code, at the task's temperature, penalties apart. The codes' rows
    start from the initial adapter's, else from those of the newest frozen one, else from the backbone's; no penalty
    binds them (methods.md 5c).

    Args:
        spec: slices, recipe, penalties and warm-start rule.
        model: the backbone with its training slot.
        blocks: the log.
        settings: micro-batches and token budget.
        initial: weights of `spec.init`.
        frozen: weights of `spec.frozen.adapters`, in that order.
        progress: is told one line a validation.
        checkpoint: saves the fit's state every so many steps.

    Raises:
        LsatError: when the weights given are not those the spec names, a slice is empty, or the loss is not finite.
    """
    if spec.regulariser and initial is None and spec.init is None:
        raise LsatError("regulariser: it refers to the initial adapter, and this spec starts from none")
    train, validation = (
        encode_targets(blocks, _some(blocks, spec, part), model.codes, spec.task.history)
        for part in ("train", "validation")
    )
    rows = parted(frozen[-1])[1] if frozen else {}
    objective, lora = NextCode(spec, model, blocks.codes.shape[1], rows), [parted(a)[0] for a in frozen]
    return training.fit(
        spec, model, train, validation, TorchEngine(), settings, initial, progress, lora, checkpoint, objective
    )


class NextCode:
    """Cross-entropy over all codes at each answer, the logits divided by the task's temperature."""

    name: Literal["auc", "loss"] = "loss"
    penalties: tuple[str, ...] = ("output-kl",)

    def __init__(
        self, spec: GenerativeSpec, model: GenerativeModel, levels: int, rows: dict[str, torch.Tensor]
    ) -> None:
        """Say what is fitted.

        Args:
            spec: with temperature and regulariser.
            model: the backbone with its training slot.
            levels: codes of an item.
            rows: of the codes, where no initial adapter has them.
        """
        self.spec, self.model, self.answers, self.rows = spec, model, levels, rows
        self.output: OutputKl | None = None

    def start(self, model: AdaptedBackbone, initial: Adapter | None) -> Adapter | None:
        """Load the LoRA weights and the codes' rows."""
        if initial is None:
            self.model.set_rows(self.rows)
            return None
        lora, rows = parted(initial)
        lora = own(lora, self.spec.lora.rank)
        worn = joined(lora, rows)
        self.model.wear(worn)
        if self.spec.regulariser and self.spec.regulariser.kind in self.penalties:
            self.output = OutputKl(self.spec, self.model, lora)
        return worn

    def loss(self, engine: Engine, batch: Batch, rows: Encoded) -> torch.Tensor:
        """Return the sum over the codes."""
        with self.output.watched(_real(batch, rows)) if self.output else nullcontext():
            logits = engine.logits(batch) / self.spec.task.temperature
        return functional.cross_entropy(logits, batch.label.long(), reduction="sum")

    def extra(self) -> torch.Tensor | None:
        """Return the KL of the layers' outputs."""
        return self.output.value() if self.output else None

    def pull(self, rows: Encoded, sequences: int) -> tuple[float, float] | None:
        """Return the KL of the layers' outputs over all rows, and the norm of its gradient."""
        if self.output is None:
            return None
        self.model.eval()
        weights = list(self.model.slot_parameters().values())
        total, gradient = 0.0, [torch.zeros_like(w) for w in weights]
        for group in np.split(np.arange(len(rows)), range(sequences, len(rows), sequences)):
            batch = collate(rows, group).to(self.model.device)
            with self.output.watched(_real(batch, rows)):
                self.model(batch)
            value = self.output.value() * (len(group) / len(rows))
            total += float(value.detach())
            gradient = [g + found for g, found in zip(gradient, torch.autograd.grad(value, weights), strict=True)]
        return total, float(torch.stack([g.norm() for g in gradient]).norm())

    def validate(self, model: AdaptedBackbone, engine: Engine, rows: Encoded, batch_tokens: int) -> np.ndarray:
        """Return the mean loss, float64 [1]."""
        return np.array([validation_loss(self.model, rows, self.spec.task.temperature, batch_tokens)])

    def figure(self, rows: Encoded, measured: np.ndarray) -> float:
        """Return the loss."""
        return float(measured[0])

    def measure(self, select: str, rows: Encoded, measured: np.ndarray) -> float:
        """Return the loss, negated: the one rule of selection here is `log-loss`."""
        return -float(measured[0])


def _real(batch: Batch, rows: Encoded) -> torch.Tensor:
    """Return where a batch's tokens are no padding, bool [B, L]."""
    length = torch.from_numpy(rows.lengths)[batch.sequence.cpu()].to(batch.tokens.device)
    return torch.arange(batch.tokens.shape[1], device=length.device) < length[:, None]


def validation_loss(model: GenerativeModel, encoded: Encoded, temperature: float, batch_tokens: int = 16384) -> float:
    """Return the mean loss of what the model wears, nats a code."""
    model.eval()
    total = 0.0
    with torch.no_grad():
        for group in token_budget_batches(encoded, batch_tokens):
            batch = collate(encoded, group).to(model.device)
            total += float(functional.cross_entropy(model(batch) / temperature, batch.label.long(), reduction="sum"))
    return total / len(encoded.row)


def _some(blocks: Blocks, spec: GenerativeSpec, part: str) -> np.ndarray:
    rows = blocks.select(spec.train if part == "train" else spec.validation, spec.task.split)
    if not len(rows):
        raise LsatError(f"adapter {spec.digest[:12]}: its {part} slices hold no target; name other periods")
    return rows
