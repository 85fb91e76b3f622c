"""Fit one adapter: our own step loop, the same under plain torch and under DeepSpeed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.adapters.personal import personal
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.config import EngineConfig
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded, apart, by_age, plan_epoch
from lsat_ray.training import penalty as penalties
from lsat_ray.training import selection
from lsat_ray.training.checkpoint import Checkpointer
from lsat_ray.training.engine import DataParallel, Elastic, Engine, Resumable, TorchEngine
from lsat_ray.training.frozen import Beside, beside, lora_alone
from lsat_ray.training.objective import Objective, YesNo, sharded_margins
from lsat_ray.training.progress import Progress, under
from lsat_ray.training.selection import Candidate
from lsat_ray.training.step import gradients, step_with_oom_retry

__all__ = [
    "DataParallel",
    "Elastic",
    "Engine",
    "Fitted",
    "Resumable",
    "TorchEngine",
    "fit",
    "gradients",
    "sharded_margins",
]

StoppedBy = Literal["patience", "budget"]


@dataclass
class Fitted:
    """An adapter and how it came about."""

    adapter: Adapter
    margin: np.ndarray
    """What the objective measured of the kept weights on the validation rows; float32 [V], l_Yes - l_No in the order of
    `Encoded.row`, under `YesNo`."""
    name: Literal["auc", "loss"]
    """Of the figure (`Objective.name`)."""
    figure: float
    """What the objective reports of the kept weights: `auc_or_log_loss` under `YesNo`."""
    best_step: int
    """Step whose weights were kept (the middle one where several are averaged); 0 is the start."""
    steps: int
    """Optimizer steps that were taken."""
    stopped_by: StoppedBy
    """Whether validation stopped improving, or epochs and `max_steps` were used up before."""
    targets: int
    """Targets that went through a training step."""
    seconds: dict[str, float] = field(default_factory=dict)
    """`train` and `score`."""
    history: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, mean loss since the last validation, figure) at each validation."""
    penalty: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, weighted penalty, norm of its gradient) at each validation; the loss in `history` is without it."""

    @property
    def penalty_ratio(self) -> float | None:
        """The mean over the validations of the penalty over the loss; None without a penalty."""
        losses = {step: loss for step, loss, _ in self.history}
        ratios = [value / losses[step] for step, value, _ in self.penalty]
        return float(np.mean(ratios)) if ratios else None

    def facts(self) -> dict[str, Any]:
        """Return what is published beside the weights, JSON-ready."""
        names = ("best_step", "steps", "stopped_by", "targets", "history", "penalty", "penalty_ratio")
        return {self.name: self.figure, **{name: getattr(self, name) for name in names}}


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
    objective: Objective | None = None,
) -> Fitted:
    """Fit the adapter that a spec names.

    The loss is the objective's, a mean over the answers of the global batch whatever the number of workers; with
    `spec.half_life` it is weighted by age. Validation follows the recipe's rhythm;
    its rule chooses among the validated weights. With `spec.keep_old` the initial adapter is compared with these at the
    end. Where memory runs out, micro-batches are halved for good and the step is repeated: the global batch stays.
    An engine that cannot repeat a step (DeepSpeed) raises `OutOfMemory`, and the fit begins again in new processes.

    Args:
        spec: recipe, LoRA shape, seed and warm-start rule.
        model: the backbone with its training slot.
        train: encoded training rows.
        validation: encoded validation rows.
        engine: plain torch or DeepSpeed.
        settings: micro-batches and token budget.
        initial: weights of `spec.init`.
        progress: gets one line per validation.
        frozen: weights of `spec.frozen.adapters`, in that order.
        checkpoint: saves the fit's state every so many steps, and lets a later call with the same arguments resume
            from there to the same bytes (a `Resumable` engine; without `frozen`). The caller clears it.
        objective: of the task; None is `YesNo`.

    Raises:
        LsatError: when the spec's LoRA shape is not the model's; when the loss is not finite, with the batch's row ids;
            when one sequence is too much for the memory.
    """
    if spec.lora != model.lora:
        names = [n for n in type(spec.lora).model_fields if getattr(spec.lora, n) != getattr(model.lora, n)]
        pairs = ", ".join(f"{n} {getattr(spec.lora, n)} against {getattr(model.lora, n)}" for n in names)
        raise LsatError(
            f"adapter {spec.digest[:12]}: lora of the spec and of the model differ ({pairs}); make both from one config"
        )
    if objective is None:
        objective = YesNo(spec.recipe.loss)
        train = apart(train) if spec.recipe.loss == "language" else train  # the prefix is part of the text
    gate = spec.reclora.gate if spec.reclora else None
    width = 0 if train.profile is None else train.profile.shape[1]
    with personal(model, gate, width), beside(model, spec, frozen) as extra:
        run = _Fit(spec, model, train, validation, engine, settings, progress, extra, objective)
        run.start(initial, checkpoint)
        try:
            run.train()
            return run.finish()
        finally:
            model.eval()  # after an error too: what is scored next must not see dropout


class _Fit:
    """One fit: its inputs and its progress."""

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
        objective: Objective,
    ) -> None:
        self.spec, self.model, self.validation = spec, model, validation
        self.rows = train if spec.half_life is None else by_age(train, spec.half_life)
        self.engine, self.settings, self.tell, self.extra = engine, settings, tell, extra
        self.recipe, self.objective = spec.recipe, objective
        self.checkpoint: Checkpointer | None = None
        self.now = Progress(np.random.default_rng([spec.seed, 7]), settings.micro_batches)

    def start(self, initial: Adapter | None, checkpoint: Checkpointer | None) -> None:
        """Load the initial weights, or those of the newest state, into the training slot; hand it to the engine."""
        spec, model = self.spec, self.model
        if (spec.init is None) != (initial is None):
            raise LsatError(f"adapter {spec.digest[:12]}: its spec and the weights given to start from do not agree")
        with self.engine.whole(model):
            model.reset(spec.start_seed)
            initial = self.objective.start(model, initial)
            if self.extra:
                self.extra.start(self.rows)
        past = self.extra.past if self.extra else None
        kind = spec.regulariser.kind if spec.regulariser else None
        weights = replace(spec, regulariser=None) if kind in self.objective.penalties else spec
        self.penalty = penalties.of(weights, model.slot_parameters, initial and lora_alone(initial), past)
        self.initial = initial
        if checkpoint and not self.extra and isinstance(self.engine, Resumable):
            self.checkpoint = checkpoint
        state = self.resume()
        self.engine.begin(model, self.recipe, self.now.micro_batches)
        if state:
            assert isinstance(self.engine, Resumable)
            self.engine.load_optimizer_state(under(state, "optimizer."))

    def train(self) -> None:
        """Take steps until the budget or the patience is used up."""
        now = self.now
        while now.epoch < self.recipe.epochs and not self.stopped():
            now.drawn = dict(now.order.bit_generator.state)
            batches = plan_epoch(self.rows, self.recipe.batch_size * self.objective.answers, now.order)
            while now.batch < len(batches) and not self.stopped():
                self.step(batches[now.batch])
                if self.due(len(batches)):
                    self.validate()
                if self.checkpoint and self.checkpoint.due(now.step):
                    self.save(self.checkpoint)
            if now.batch == len(batches):
                now.epoch, now.batch = now.epoch + 1, 0

    def stopped(self) -> bool:
        """Return whether the patience or the budget of steps is used up."""
        return self.now.waited >= self.recipe.patience or self.now.step == self.recipe.max_steps

    def due(self, batches: int) -> bool:
        """Return whether the step just taken is validated, in an epoch of so many batches."""
        now, recipe = self.now, self.recipe
        if now.step == recipe.max_steps:
            return True
        if recipe.eval_every:
            return now.step % recipe.eval_every == 0
        times = recipe.evals_per_epoch or 1
        return now.batch * times // batches > (now.batch - 1) * times // batches

    def step(self, batch: np.ndarray) -> None:
        """Take one optimizer step."""
        now, recipe = self.now, self.recipe
        began = time.perf_counter()
        now.step += 1
        lr = recipe.lr * min(1.0, now.step / recipe.warmup) if recipe.warmup else recipe.lr
        noise = (self.spec.seed, now.step) if self.spec.lora.dropout else None
        value, now.micro_batches = step_with_oom_retry(
            self.model, self.engine, self.rows, batch, lr, now.micro_batches, self.penalty, noise, self.objective
        )
        now.losses.append(value)
        now.seen += int(self.rows.targets[batch].sum())
        now.batch += 1
        now.seconds["train"] += time.perf_counter() - began

    def evaluate(self) -> np.ndarray:
        """Return what the objective measures of the present weights on the validation rows."""
        began = time.perf_counter()
        margin = self.objective.validate(self.model, self.engine, self.validation, self.settings.batch_tokens)
        self.now.seconds["score"] += time.perf_counter() - began
        return margin

    def validate(self) -> None:
        """Evaluate, record it, and count how long there has been nothing better."""
        now = self.now
        margin = self.evaluate()
        figure = self.objective.figure(self.validation, margin)
        by_share = [np.mean(losses) for losses in zip(*now.losses, strict=True)]
        mean = float(self.engine.gather(np.array(by_share)).mean())
        now.history.append((now.step, mean, figure))
        if self.penalty:
            with self.engine.whole(self.model):
                now.pulls.append((now.step, *self.penalty.measure()))
        sequences = max(1, self.recipe.batch_size // now.micro_batches)
        if (pull := self.objective.pull(self.validation, sequences)) is not None:
            now.pulls.append((now.step, *pull))
        now.losses = []
        name = self.objective.name
        self.say(f"epoch {now.epoch + 1} step {now.step} loss {mean:.4f} validation {name} {figure:.4f}")
        value = self.measure(margin)
        better, greedy = value > now.best, self.recipe.select in selection.GREEDY
        now.best, now.waited = max(value, now.best), 0 if better else now.waited + 1
        if better and greedy:
            now.candidates.clear()
        if better or not greedy:
            now.candidates.append(Candidate(now.step, self.engine.snapshot(), margin))

    def measure(self, margin: np.ndarray) -> float:
        """Return what the recipe's rule compares, higher is better."""
        return self.objective.measure(self.recipe.select, self.validation, margin)

    def finish(self) -> Fitted:
        """Choose, release the engine and return the weights."""
        now = self.now
        if not now.candidates:  # fewer steps than `eval_every`
            now.candidates.append(Candidate(now.step, self.engine.snapshot(), self.evaluate()))
        best = self.choose()
        if self.extra:
            with self.engine.whole(self.model):
                self.extra.remember(best.adapter, self.rows)
        self.engine.finish()
        return Fitted(
            adapter=self.extra.whole(best.adapter) if self.extra else best.adapter,
            margin=best.margin,
            name=self.objective.name,
            figure=self.objective.figure(self.validation, best.margin),
            best_step=best.step,
            steps=now.step,
            stopped_by="patience" if now.waited >= self.recipe.patience else "budget",
            targets=now.seen,
            seconds=now.seconds,
            history=now.history,
            penalty=now.pulls,
        )

    def choose(self) -> Candidate:
        """Return what the rule keeps; with `keep_old` the untuned start, unless that is worse."""
        found = self.now.candidates
        if len(found) == 1:  # always so under a greedy rule
            chosen = found
        else:
            chosen = [found[i] for i in selection.RULES[self.recipe.select](found, self.validation.label)]
        best = chosen[len(chosen) // 2]
        if len(chosen) > 1:
            best = self.candidate(best.step, selection.mean([c.adapter for c in chosen]))
        if self.spec.keep_old and self.initial is not None:
            old = self.candidate(0, self.initial)
            best = old if self.measure(old.margin) >= self.measure(best.margin) else best
        return best

    def candidate(self, step: int, adapter: Adapter) -> Candidate:
        """Load weights into the training slot and evaluate them."""
        with self.engine.whole(self.model):
            self.model.restore(adapter.state)
        return Candidate(step, adapter, self.evaluate())

    def save(self, checkpoint: Checkpointer) -> None:
        """Checkpoint everything needed to resume exactly; rank 0 writes."""
        assert isinstance(self.engine, Resumable)
        tensors, facts = self.now.pack()
        tensors |= {f"now.{k}": v for k, v in self.engine.snapshot().state.items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.engine.optimizer_state().items()}
        facts["engine"] = self.engine_name()
        if self.engine.rank == 0:
            checkpoint.save(self.spec.digest, self.now.step, tensors, facts)

    def resume(self) -> dict[str, torch.Tensor]:
        """Load progress and weights of the newest state, if there is one of this engine; return its tensors."""
        if self.checkpoint is None:
            return {}
        found = self.checkpoint.load(self.spec.digest)
        seen = self.engine.gather(np.array([found[1]["step"] if found else -1]))
        if len(set(seen.tolist())) > 1:  # on shared storage a rank may see a file later
            self.say(f"not resumed: the workers see states of steps {sorted(set(seen.tolist()))}")
            return {}
        if found is None:
            return {}
        tensors, facts = found
        engine = facts.pop("engine", "an earlier version")
        if engine != self.engine_name():
            self.say(f"not resumed: the state of step {facts['step']} is of {engine}, this is {self.engine_name()}")
            return {}
        self.now.unpack(tensors, facts)
        self.now.micro_batches = max(self.now.micro_batches, self.settings.micro_batches)  # memory ran out since
        self.now.rewind()
        with self.engine.whole(self.model):
            self.model.restore(under(tensors, "now."))
        self.say(f"resumed at step {self.now.step}")
        return tensors

    def engine_name(self) -> str:
        """Return what decides the form of the optimizer's state: engine, ZeRO stage and workers."""
        return f"{self.engine.kind}, {self.engine.world} worker(s)"

    def say(self, line: str) -> None:
        """Report a line of progress, if a callback was given."""
        if self.tell:
            self.tell(line)
