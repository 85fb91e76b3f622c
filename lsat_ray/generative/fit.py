"""Fit one adapter of the generative task: next-code cross-entropy, the same engines, penalties and frozen sums."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.nn import functional

from lsat_ray.adapters.lora import Adapter
from lsat_ray.config import EngineConfig
from lsat_ray.errors import LsatError
from lsat_ray.generative.blocks import Blocks
from lsat_ray.generative.encode import encode_targets
from lsat_ray.generative.model import GenerativeModel, joined, parted
from lsat_ray.generative.penalty import OutputKl
from lsat_ray.generative.spec import GenerativeSpec
from lsat_ray.prompts.batch import Encoded, collate, plan_epoch, split_by_tokens, token_budget_batches
from lsat_ray.training import penalty as penalties
from lsat_ray.training.engine import TorchEngine
from lsat_ray.training.frozen import Beside, beside, own


@dataclass
class Fitted:
    """An adapter and how it came about."""

    adapter: Adapter
    """LoRA weights and, where they are trained, the codes' rows."""
    loss: float
    """Validation loss of the kept weights, nats a code, at the task's temperature, penalties apart."""
    best_step: int
    """Step whose weights were kept; 0 is the start."""
    steps: int
    seconds: float
    history: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, mean training loss, validation loss) at each validation."""
    penalty: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, weighted penalty, norm of its gradient) at each validation."""


def fit(
    spec: GenerativeSpec,
    model: GenerativeModel,
    blocks: Blocks,
    settings: EngineConfig,
    initial: Adapter | None = None,
    frozen: Sequence[Adapter] = (),
    progress: Callable[[str], None] | None = None,
) -> Fitted:
    """Fit the adapter that a spec names, in one process.

    The validation loss is taken every `eval_every` steps (once an epoch); the lowest is kept, and `patience` of them
    without a lower one end the fit. The codes' rows start from the initial adapter's, else from those of the newest
    frozen one, else from the backbone's; no penalty binds them (methods.md 5c).

    Args:
        spec: slices, recipe, penalties and warm-start rule.
        model: the backbone with its training slot.
        blocks: the log.
        settings: micro-batches and token budget.
        initial: weights of `spec.init`.
        frozen: weights of `spec.frozen.adapters`, in that order.
        progress: is told one line a validation.

    Raises:
        LsatError: when the weights given are not those the spec names, a slice is empty, or the loss is not finite.
    """
    if (spec.init is None) != (initial is None):
        raise LsatError(f"adapter {spec.digest[:12]}: its spec and the weights given to start from do not agree")
    if spec.regulariser and initial is None:
        raise LsatError("regulariser: it refers to the initial adapter, and this spec starts from none")
    train, validation = (
        encode_targets(blocks, _some(blocks, spec, part), model.codes, spec.task.history)
        for part in ("train", "validation")
    )
    lora = [parted(a)[0] for a in frozen]
    with beside(model, spec, lora) as extra:
        run = _Fit(spec, model, train, validation, settings, progress, extra)
        run.start(initial, parted(frozen[-1])[1] if frozen else {})
        return run.train()


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


class _Fit:
    def __init__(
        self,
        spec: GenerativeSpec,
        model: GenerativeModel,
        train: Encoded,
        validation: Encoded,
        settings: EngineConfig,
        tell: Callable[[str], None] | None,
        extra: Beside | None,
    ) -> None:
        self.spec, self.model, self.rows, self.validation = spec, model, train, validation
        self.settings, self.tell, self.extra = settings, tell, extra
        self.engine = TorchEngine()
        self.output: OutputKl | None = None

    def start(self, initial: Adapter | None, newest_rows: dict[str, torch.Tensor]) -> None:
        """Put the weights to start from into the training slot and hand it to the engine."""
        spec, model = self.spec, self.model
        model.reset(spec.start_seed)
        lora, rows = parted(initial) if initial else (None, newest_rows)
        if lora:
            lora = own(lora, spec.lora.rank)
            model.wear(joined(lora, rows))
        else:
            model.set_rows(rows)
        if self.extra:
            self.extra.start(self.rows)
        weights = spec
        if spec.regulariser and spec.regulariser.kind == "output-kl":
            assert lora is not None
            self.output, weights = OutputKl(spec, model, lora), replace(spec, regulariser=None)
        self.penalty = penalties.of(weights, model.slot_parameters, lora, self.extra.past if self.extra else None)
        self.initial = initial
        self.engine.begin(model, spec.recipe, self.settings.micro_batches)

    def train(self) -> Fitted:
        """Take steps until the epochs or the patience are used up; return the best weights."""
        recipe, order, began = self.spec.recipe, np.random.default_rng([self.spec.seed, 7]), time.perf_counter()
        step, waited, losses = 0, 0, []
        best = Fitted(self._snapshot(), np.inf, 0, 0, 0.0)
        if self.spec.keep_old and self.initial is not None:
            best.adapter, best.loss = self.initial, self._validate()
        answers = recipe.batch_size * len(self.rows.row) // len(np.unique(self.rows.row))
        for _ in range(recipe.epochs):
            batches = plan_epoch(self.rows, answers, order)
            for number, batch in enumerate(batches, start=1):
                step += 1
                losses.append(self._gradients(batch, step))
                self.engine.step(recipe.lr * min(1.0, step / recipe.warmup) if recipe.warmup else recipe.lr)
                if step % recipe.eval_every if recipe.eval_every else number < len(batches):
                    continue
                value = self._validate()
                best.history.append((step, float(np.mean(losses)), value))
                if self.penalty:
                    best.penalty.append((step, *self.penalty.measure()))
                if self.tell:
                    self.tell(f"step {step} loss {np.mean(losses):.4f} validation loss {value:.4f}")
                losses, waited = [], waited + 1
                if value < best.loss:
                    best.loss, best.best_step, best.adapter, waited = value, step, self._snapshot(), 0
                if waited >= recipe.patience:
                    break
            if waited >= recipe.patience:
                break
        if not np.isfinite(best.loss):  # fewer steps than `eval_every`
            best.loss, best.best_step, best.adapter = self._validate(), step, self._snapshot()
        self.engine.finish()
        self.model.eval()
        best.steps, best.seconds = step, time.perf_counter() - began
        return best

    def _snapshot(self) -> Adapter:
        lora, rows = parted(self.model.snapshot())
        return joined(self.extra.whole(lora) if self.extra else lora, rows)

    def _validate(self) -> float:
        return validation_loss(self.model, self.validation, self.spec.task.temperature, self.settings.batch_tokens)

    def _gradients(self, batch: np.ndarray, step: int) -> float:
        """Add up the gradients of a batch's mean loss; return that loss, penalties apart."""
        noise = (self.spec.seed, step) if self.spec.lora.dropout else None
        model, pieces = self.model, min(self.settings.micro_batches, len(batch))
        model.train()
        total, value = int(self.rows.targets[batch].sum()), 0.0
        pull = self.penalty.gradient()[1] if self.penalty else {}
        for part in split_by_tokens(batch, self.rows.lengths, pieces):
            micro = collate(self.rows, part, noise=noise).to(model.device)
            length = torch.from_numpy(self.rows.lengths[part]).to(model.device)
            real = torch.arange(micro.tokens.shape[1], device=model.device) < length[:, None]
            with self.output.watched(real) if self.output else nullcontext():
                logits = self.engine.logits(micro) / self.spec.task.temperature
            loss = functional.cross_entropy(logits, micro.label.long(), reduction="sum") / total
            if not torch.isfinite(loss):
                rows = np.unique(self.rows.row[micro.index]).tolist()
                raise LsatError(f"training: the loss is {loss.item()} on targets {rows}; lower recipe.lr")
            value += float(loss.detach())
            if self.output:
                loss = loss + self.output.value() / pieces
            with self.penalty.added(pull, 1 / pieces) if self.penalty else nullcontext():
                self.engine.backward(loss)
        return value
