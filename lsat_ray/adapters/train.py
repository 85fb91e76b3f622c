"""Fit one adapter: our own step loop, the same under plain torch and under DeepSpeed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from lsat_ray.adapters import penalty as penalties
from lsat_ray.adapters.frozen import Beside, beside, own
from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.adapters.score import margins
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.config import EngineConfig, Recipe
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Batch, Encoded, collate, plan_epoch, split_by_tokens


class Engine(Protocol):
    """Who turns losses into steps. One instance serves one adapter after another."""

    rank: int
    world: int

    def whole(self, model: AdaptedBackbone) -> AbstractContextManager[None]:
        """Make the slot's weights whole on every rank, to be read or written (ZeRO-3 splits them)."""

    def begin(self, model: AdaptedBackbone, recipe: Recipe, micro_batches: int) -> None:
        """Take the model's training slot with a fresh optimizer."""

    def logits(self, batch: Batch) -> torch.Tensor:
        """Run the model forward."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of this worker's share of the global mean loss."""

    def step(self, lr: float) -> None:
        """Average over workers, clip, update, clear."""

    def snapshot(self) -> Adapter:
        """Return the current weights, on every rank."""

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Return the ranks' arrays one after the other, on every rank."""

    def finish(self) -> None:
        """Let the model go."""


@dataclass
class Fitted:
    """An adapter and how it came about."""

    adapter: Adapter
    margin: np.ndarray
    """float32 [V], l_Yes - l_No of the kept weights on the validation targets, in the order of `Encoded.row`."""
    auc: float
    """Validation AUC of the kept weights."""
    best_step: int
    """Step whose weights were kept; 0 is the start."""
    steps: int
    targets: int
    """Targets that went through a training step."""
    seconds: dict[str, float] = field(default_factory=dict)
    """`train` and `score`."""
    history: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, mean loss since the last validation, validation AUC)."""
    penalty: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, weighted penalty, norm of its gradient) at each validation; the loss in `history` is without it."""


class TorchEngine:
    """One process, plain torch."""

    rank = 0
    world = 1

    def whole(self, model: AdaptedBackbone) -> AbstractContextManager[None]:
        return nullcontext()

    def begin(self, model: AdaptedBackbone, recipe: Recipe, micro_batches: int) -> None:
        self._model = model
        self._parameters = list(model.trainable().values())
        for parameter in self._parameters:
            parameter.grad = None
        self._optimizer = torch.optim.AdamW(self._parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self._clip = recipe.clip

    def logits(self, batch: Batch) -> torch.Tensor:
        return self._model(batch)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, lr: float) -> None:
        torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def snapshot(self) -> Adapter:
        return self._model.snapshot()

    def gather(self, values: np.ndarray) -> np.ndarray:
        return values

    def finish(self) -> None:
        del self._model, self._parameters, self._optimizer


def quality(label: np.ndarray, margin: np.ndarray) -> float:
    """Return the AUC; with one class only, minus the log-loss, so that there is still an order."""
    if 0 < label.sum() < len(label):
        return float(roc_auc_score(label, margin))
    sign = np.where(label > 0, 1.0, -1.0)
    return -float(np.logaddexp(0.0, -sign * margin.astype(np.float64)).mean())


def fit(
    spec: AdapterSpec,
    model: AdaptedBackbone,
    train: Encoded,
    validation: Encoded,
    engine: Engine,
    settings: EngineConfig,
    initial: Adapter | None = None,
    progress: Callable[[str], None] | None = None,
    frozen: Sequence[Adapter] = (),
) -> Fitted:
    """Fit the adapter that a spec names.

    The loss is the cross-entropy over {No, Yes} at the answer's place, a mean over the targets of the global batch
    whatever the number of workers. Validation AUC is taken every `eval_every` steps; the best weights are kept.

    Args:
        spec: recipe, seed and warm-start rule.
        model: the backbone with its training slot.
        train: encoded training rows.
        validation: encoded validation rows.
        engine: plain torch or DeepSpeed.
        settings: micro-batches and token budget.
        initial: weights of `spec.init`.
        progress: is told one line a validation.
        frozen: weights of `spec.frozen.adapters`, in that order.

    Raises:
        LsatError: when the loss is not finite; the message holds the batch's row ids.
    """
    with beside(model, spec, frozen) as extra:
        return _fit(spec, model, train, validation, engine, settings, initial, progress, extra)


def _fit(
    spec: AdapterSpec,
    model: AdaptedBackbone,
    train: Encoded,
    validation: Encoded,
    engine: Engine,
    settings: EngineConfig,
    initial: Adapter | None,
    progress: Callable[[str], None] | None,
    extra: Beside | None,
) -> Fitted:
    recipe = spec.recipe
    if (spec.init is None) != (initial is None):
        raise LsatError(f"adapter {spec.digest[:12]}: its spec and the weights given to start from do not agree")
    with engine.whole(model):
        model.reset(spec.seed)
        if initial is not None:
            initial = own(initial, spec.lora.rank)
            model.wear(initial)
        if extra:
            extra.start(train, settings.batch_tokens)
    penalty = penalties.of(spec, model.slot_parameters, initial, extra.past if extra else None)
    torch.manual_seed(spec.seed * 1000 + engine.rank)  # dropout
    engine.begin(model, recipe, settings.micro_batches)
    seconds = {"train": 0.0, "score": 0.0}

    def evaluate() -> tuple[float, np.ndarray]:
        began = time.perf_counter()
        margin = sharded_margins(model, engine, validation, settings.batch_tokens)
        seconds["score"] += time.perf_counter() - began
        return quality(validation.label, margin), margin

    best_auc, best_margin, best_step, best = -np.inf, np.empty(0, np.float32), 0, None
    if spec.keep_old and initial is not None:
        best_auc, best_margin = evaluate()
        best = initial
    history: list[tuple[int, float, float]] = []
    pulls: list[tuple[int, float, float]] = []
    step = seen = waited = 0
    losses: list[float] = []
    order = np.random.default_rng([spec.seed, 7])
    for epoch in range(recipe.epochs):
        batches = plan_epoch(train, recipe.batch_size, order)
        for number, batch in enumerate(batches):
            began = time.perf_counter()
            step += 1
            lr = recipe.lr * min(1.0, step / recipe.warmup) if recipe.warmup else recipe.lr
            losses.append(_step(model, engine, train, batch, lr, settings.micro_batches, penalty))
            seen += int(train.targets[batch].sum())
            seconds["train"] += time.perf_counter() - began
            last = number == len(batches) - 1
            if (step % recipe.eval_every == 0) if recipe.eval_every else last:
                auc, margin = evaluate()
                mean = float(engine.gather(np.array([np.mean(losses)])).mean())
                history.append((step, mean, auc))
                if penalty:
                    with engine.whole(model):
                        pulls.append((step, *penalty.measure()))
                losses = []
                if progress:
                    progress(f"epoch {epoch + 1} step {step} loss {mean:.4f} validation AUC {auc:.4f}")
                if auc > best_auc:
                    best_auc, best_margin, best_step, best, waited = auc, margin, step, engine.snapshot(), 0
                else:
                    waited += 1
            if waited >= recipe.patience:
                break
        if waited >= recipe.patience:
            break
    if best is None:  # fewer steps than `eval_every`
        best_auc, best_margin = evaluate()
        best_step, best = step, engine.snapshot()
    engine.finish()
    model.eval()
    whole = extra.whole(best) if extra else best
    return Fitted(whole, best_margin, best_auc, best_step, step, seen, seconds, history, pulls)


def sharded_margins(model: AdaptedBackbone, engine: Engine, encoded: Encoded, batch_tokens: int) -> np.ndarray:
    """Return float32 [N], the margins of all targets, each computed by one worker."""
    model.eval()
    share = split_by_tokens(np.arange(len(encoded)), encoded.lengths, engine.world)[engine.rank]
    index, margin = margins(engine.logits, encoded, model.device, batch_tokens, share)
    model.train()
    index, margin = engine.gather(index), engine.gather(margin)
    out = np.empty(len(encoded.row), dtype=np.float32)
    out[index] = margin
    return out


def _step(
    model: AdaptedBackbone,
    engine: Engine,
    train: Encoded,
    batch: np.ndarray,
    lr: float,
    micro_batches: int,
    penalty: penalties.Penalty | None = None,
) -> float:
    """Take one optimizer step on a global batch; return this worker's estimate of its mean loss, penalty apart."""
    model.train()
    share = split_by_tokens(batch, train.lengths, engine.world)[engine.rank]
    total = float(train.targets[batch].sum())
    value = 0.0
    for part in split_by_tokens(share, train.lengths, micro_batches):
        weight = 1.0 if len(part) else 0.0  # a worker without rows still takes part in the collective step
        micro = collate(train, part if len(part) else batch[:1]).to(model.device)
        logits = engine.logits(micro)
        loss = weight * functional.cross_entropy(logits, micro.label.long(), reduction="sum") / total
        if not torch.isfinite(loss):
            rows = train.row[micro.index].tolist()
            raise LsatError(
                f"training: the loss is {loss.item()} on sample rows {rows}; lower recipe.lr or use bfloat16"
            )
        value += float(loss.detach())
        engine.backward(loss + penalty() / (engine.world * micro_batches) if penalty else loss)
    engine.step(lr)
    return value * engine.world
