"""Fit one adapter: our own step loop, the same under plain torch and under DeepSpeed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.config import EngineConfig
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded, collate, plan_epoch, split_by_tokens
from lsat_ray.scoring.score import margins
from lsat_ray.training import penalty as penalties
from lsat_ray.training.checkpoint import Checkpointer
from lsat_ray.training.engine import DataParallel, Elastic, Engine, Resumable, TorchEngine
from lsat_ray.training.frozen import Beside, beside, own
from lsat_ray.training.progress import Progress

__all__ = [
    "DataParallel",
    "Elastic",
    "Engine",
    "Fitted",
    "Resumable",
    "TorchEngine",
    "fit",
    "gradients",
    "quality",
    "sharded_margins",
]


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
    checkpoint: Checkpointer | None = None,
) -> Fitted:
    """Fit the adapter that a spec names.

    The loss is the cross-entropy over {No, Yes} at the answer's place, a mean over the targets of the global batch
    whatever the number of workers. Validation AUC is taken every `eval_every` steps; the best weights are kept.
    Where memory runs out, micro-batches are halved for good and the step begins again: the global batch stays.

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
        checkpoint: saves the fit's state every so many steps, and lets a later call with the same arguments go on
            from there to the same bytes (a `Resumable` engine; without `frozen`). The caller clears it.

    Raises:
        LsatError: when the loss is not finite, the message holds the batch's row ids; when one sequence is too much
            for the memory.
    """
    with beside(model, spec, frozen) as extra:
        run = _Fit(spec, model, train, validation, engine, settings, progress, extra)
        run.start(initial, checkpoint)
        run.train()
        return run.finish()


class _Fit:
    """One fit: who takes part, and where it stands."""

    def __init__(
        self,
        spec: AdapterSpec,
        model: AdaptedBackbone,
        train: Encoded,
        validation: Encoded,
        engine: Engine,
        settings: EngineConfig,
        tell: Callable[[str], None] | None,
        extra: Beside | None,
    ) -> None:
        self.spec, self.model, self.rows, self.validation = spec, model, train, validation
        self.engine, self.settings, self.tell, self.extra = engine, settings, tell, extra
        self.recipe = spec.recipe
        self.checkpoint: Checkpointer | None = None
        self.now = Progress(np.random.default_rng([spec.seed, 7]), settings.micro_batches)

    def start(self, initial: Adapter | None, checkpoint: Checkpointer | None) -> None:
        """Put the weights to start from, or to go on from, into the training slot and hand it to the engine."""
        spec, model = self.spec, self.model
        if (spec.init is None) != (initial is None):
            raise LsatError(f"adapter {spec.digest[:12]}: its spec and the weights given to start from do not agree")
        with self.engine.whole(model):
            model.reset(spec.seed)
            if initial is not None:
                initial = own(initial, spec.lora.rank)
                model.wear(initial)
            if self.extra:
                self.extra.start(self.rows, self.settings.batch_tokens)
        past = self.extra.past if self.extra else None
        self.penalty = penalties.of(spec, model.slot_parameters, initial, past)
        torch.manual_seed(spec.seed * 1000 + self.engine.rank)  # dropout
        self.initial = initial
        if checkpoint and not self.extra and isinstance(self.engine, Resumable):
            self.checkpoint = checkpoint
        state = self.resume()
        self.engine.begin(model, self.recipe, self.now.micro_batches)
        if state:
            assert isinstance(self.engine, Resumable)
            self.engine.load_optimizer_state(_under(state, "optimizer."))
            random = state["random"].chunk(self.engine.world)[self.engine.rank]
            _set_random_state(random, self.model.device)

    def train(self) -> None:
        """Take steps until the epochs or the patience are used up."""
        now, recipe = self.now, self.recipe
        if now.step == 0 and self.spec.keep_old and self.initial is not None:
            now.offer(*self.evaluate(), self.initial)
        while now.epoch < recipe.epochs and now.waited < recipe.patience:
            now.drawn = dict(now.order.bit_generator.state)
            batches = plan_epoch(self.rows, recipe.batch_size, now.order)
            while now.batch < len(batches) and now.waited < recipe.patience:
                self.step(batches[now.batch], last=now.batch == len(batches) - 1)
            if now.batch == len(batches):
                now.epoch, now.batch = now.epoch + 1, 0

    def step(self, batch: np.ndarray, last: bool) -> None:
        """Take one optimizer step, and what is due after it."""
        now, recipe = self.now, self.recipe
        began = time.perf_counter()
        now.step += 1
        lr = recipe.lr * min(1.0, now.step / recipe.warmup) if recipe.warmup else recipe.lr
        value, now.micro_batches = _roomy_step(
            self.model, self.engine, self.rows, batch, lr, now.micro_batches, self.penalty
        )
        now.losses.append(value)
        now.seen += int(self.rows.targets[batch].sum())
        now.batch += 1
        now.seconds["train"] += time.perf_counter() - began
        if (now.step % recipe.eval_every == 0) if recipe.eval_every else last:
            self.validate()
        if self.checkpoint and self.checkpoint.due(now.step):
            self.save(self.checkpoint)

    def evaluate(self) -> tuple[float, np.ndarray]:
        """Return AUC and margins of the present weights on the validation rows."""
        began = time.perf_counter()
        margin = sharded_margins(self.model, self.engine, self.validation, self.settings.batch_tokens)
        self.now.seconds["score"] += time.perf_counter() - began
        return quality(self.validation.label, margin), margin

    def validate(self) -> None:
        """Evaluate, note it, and keep the weights when they are the best so far."""
        now = self.now
        auc, margin = self.evaluate()
        mean = float(self.engine.gather(np.array([np.mean(now.losses)])).mean())
        now.history.append((now.step, mean, auc))
        if self.penalty:
            with self.engine.whole(self.model):
                now.pulls.append((now.step, *self.penalty.measure()))
        now.losses = []
        if self.tell:
            self.tell(f"epoch {now.epoch + 1} step {now.step} loss {mean:.4f} validation AUC {auc:.4f}")
        if auc > now.best_auc:
            now.offer(auc, margin, self.engine.snapshot())
            now.waited = 0
        else:
            now.waited += 1

    def finish(self) -> Fitted:
        """Let the engine go and return the best weights."""
        now = self.now
        if now.best is None:  # fewer steps than `eval_every`
            now.offer(*self.evaluate(), self.engine.snapshot())
        self.engine.finish()
        self.model.eval()
        assert now.best is not None
        whole = self.extra.whole(now.best) if self.extra else now.best
        margin, history = now.best_margin, now.history
        return Fitted(whole, margin, now.best_auc, now.best_step, now.step, now.seen, now.seconds, history, now.pulls)

    def save(self, checkpoint: Checkpointer) -> None:
        """Put everything down that the further course depends on; rank 0 writes."""
        assert isinstance(self.engine, Resumable)
        tensors, facts = self.now.pack()
        tensors |= {f"now.{k}": v for k, v in self.engine.snapshot().state.items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.engine.optimizer_state().items()}
        tensors["random"] = torch.from_numpy(self.engine.gather(_random_state(self.model.device)))
        facts["world"] = self.engine.world
        if self.engine.rank == 0:
            checkpoint.save(self.spec.digest, self.now.step, tensors, facts)

    def resume(self) -> dict[str, torch.Tensor]:
        """Take up the newest state's place and weights, if there is one of as many workers; return its tensors."""
        found = self.checkpoint.load(self.spec.digest) if self.checkpoint else None
        if found is None or found[1].pop("world") != self.engine.world:
            return {}
        tensors, facts = found
        self.now.unpack(tensors, facts)
        self.now.rewind()
        with self.engine.whole(self.model):
            self.model.wear(Adapter(_under(tensors, "now."), self.model.lora.rank, self.model.lora.alpha))
        if self.tell:
            self.tell(f"resumed at step {self.now.step}")
        return tensors


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _random_state(device: torch.device) -> np.ndarray:
    """Return the generators that dropout draws from, uint8: the CPU's, then the device's."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states).numpy()


def _set_random_state(state: torch.Tensor, device: torch.device) -> None:
    host = len(torch.get_rng_state())
    torch.set_rng_state(state[:host].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[host:].clone(), device)


def _roomy_step(
    model: AdaptedBackbone,
    engine: Engine,
    train: Encoded,
    batch: np.ndarray,
    lr: float,
    micro_batches: int,
    penalty: penalties.Penalty | None,
) -> tuple[float, int]:
    """Take a step; where any rank's memory runs out, all begin it again in twice as many pieces.

    Returns:
        The step's mean loss and the pieces that it took.

    Raises:
        LsatError: when there is nothing left to halve, or the engine cannot begin a step again (DeepSpeed reduces
            gradients while it computes them, so a rank that fails leaves the others waiting).
    """
    while True:
        cause: torch.OutOfMemoryError | None = None
        value = 0.0
        try:
            value = gradients(model, engine, train, batch, micro_batches, penalty)
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
    share = split_by_tokens(np.arange(len(encoded)), encoded.lengths, engine.world)[engine.rank]
    index, margin = margins(engine.logits, encoded, model.device, batch_tokens, share)
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
) -> float:
    """Add up this worker's gradients of a global batch's mean loss; return its estimate of that loss, penalty apart.

    Args:
        model: the backbone with its training slot.
        engine: has taken the slot (`begin`); its `step` comes next.
        train: the rows.
        batch: int [B], sequences of the global batch.
        micro_batches: pieces of a worker's share.
        penalty: added to the loss.

    Raises:
        LsatError: when the loss is not finite, with the batch's row ids.
    """
    model.train()
    share = split_by_tokens(batch, train.lengths, engine.world)[engine.rank]
    total = float(train.targets[batch].sum())
    value = 0.0
    pull: dict[str, torch.Tensor] = {}
    if penalty:
        with engine.whole(model):
            _, pull = penalty.gradient()
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
        with penalty.added(pull, 1 / micro_batches) if penalty else nullcontext():
            engine.backward(loss)
    return value * engine.world
