"""The way of the paper's code through Table 2: every training and every test as it does them.

What it does is read off the code of TianhaoShi2001/LSAT (commit 728f5c6) and, where that calls it, PEFT 0.4; the place
stands in brackets. Adapters are trained one after the other, in this process, on this machine:

- HF Trainer + PEFT; batches in random order, at most 32 rows at a time and padded to a multiple of 8 (`train.py`); the
  loss over the vocabulary on the whole text (`train_on_inputs=True`, which nothing overrides); every activation
  computed again in the backward pass (`prepare_model_for_kbit_training`); half precision (`fp16=True` over 8-bit
  weights; on a CPU its like is bfloat16).
- Every so many steps a validation and a checkpoint, the best AUC kept; fine-tuning validates its start too. Batches of
  8 (HF's default, `train.py` sets none); loss and softmax over the vocabulary at every token
  (`utils.preprocess_logits_for_metrics`).
- A test is `Trainer.predict` in batches of 32 (`evaluate.py`), loss and softmax likewise; LSAT-TA validates every
  lambda of .1 to .9 in the same way (`arithmetic.py`).

It is spared a process and a load of the backbone per training and per test (`start_seconds` is what one costs), the
parting of a test into warm and cold rows, test rows that are tokenised for a training and not used, and dropout. It
finds the answer's place where the code takes every third Yes or No, which breaks on some titles (methods.md 9).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.adapters.merge import PARAMETER_MERGES
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.backbone.load import Backbone
from lsat_ray.data.periods import Slice
from lsat_ray.data.windows import Samples
from lsat_ray.evaluation.metrics import auc, auc_or_log_loss
from lsat_ray.prompts.encode import Encoder
from lsat_ray.runs import steps
from lsat_ray.runs.context import Run
from lsat_ray.scoring.model import combine
from lsat_ray.strategies import Plan
from lsat_ray.strategies.graph import closure

STAGES = ("train", "search", "score")
Seconds = np.ndarray
"""Wall clock and processor time, float64 [2]."""
Row = dict[str, list[int]]
"""A tokenised text: `input_ids`, `attention_mask`, `labels`."""


def now() -> Seconds:
    """Return both clocks."""
    return np.array([time.perf_counter(), time.process_time()])


@dataclass
class Cost:
    """Seconds of a way by stage and, where jobs are told apart, of every job, as often as it was done."""

    stages: dict[str, Seconds] = field(default_factory=lambda: {name: np.zeros(2) for name in STAGES})
    jobs: dict[tuple[str, Any], list[Seconds]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, job: Any = None) -> Iterator[None]:
        """Charge a block to a stage, and to one of its jobs."""
        began = now()
        yield
        spent = now() - began
        self.stages[name] += spent
        if job is not None:
            self.jobs.setdefault((name, job), []).append(spent)

    @property
    def total(self) -> Seconds:
        """Of all stages."""
        return np.sum(list(self.stages.values()), axis=0)  # type: ignore[no-any-return]

    def once(self, *stages: str) -> Seconds:
        """Return what the stages' distinct jobs would have taken, each done once, at the mean of what it took."""
        own = [np.mean(several, axis=0) for (name, _), several in self.jobs.items() if name in stages]
        return np.sum(own, axis=0)  # type: ignore[no-any-return]

    def trainings(self) -> int:
        """Return how many there were."""
        return sum(len(several) for (name, _), several in self.jobs.items() if name == "train")

    def to_json(self, clock: int) -> dict[str, float]:
        """Return seconds by stage of the wall clock (0) or the processor (1)."""
        return {name: float(spent[clock]) for name, spent in self.stages.items()}


def responses(tokenizer: Any) -> list[list[int]]:
    """Return the tokens of No and of Yes with what ends them, as many of each."""
    found = [[*tokenizer.encode(a, add_special_tokens=False), tokenizer.eos_token_id] for a in ("No.", "Yes.")]
    assert len(found[0]) == len(found[1]) and tokenizer.padding_side == "left"
    return found


def tokenised(encoder: Encoder, samples: Samples, end: list[list[int]], over: str) -> list[Row]:
    """Return prompts with their responses, as the collator wants them; the loss is `over` them as `Reference` says."""
    rows = []
    for prompt, label in zip(encoder.prompt_ids(samples), samples.label, strict=True):
        ids = prompt + end[int(label)]
        quiet = len(prompt) if over == "answer" else 0
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * quiet + ids[quiet:]})
    return rows


class Reference:
    """The way of the paper's code."""

    def __init__(self, run: Run, backbone: Backbone, over: str, folder: Path) -> None:
        """Prepare the backbone as `prepare_model_for_kbit_training` does.

        Args:
            run: log, plans and config.
            backbone: frozen.
            over: what the loss is over, the whole text (`language`) or the response (`answer`).
            folder: for checkpoints.
        """
        self.run, self.over, self.folder, self.cost = run, over, folder, Cost()
        self.model, self.tokenizer = AdaptedBackbone(backbone, run.config.lora), backbone.tokenizer
        base = self.model.peft.get_base_model()
        self.half = base.dtype == torch.bfloat16
        base.gradient_checkpointing_enable({"use_reentrant": True})
        base.enable_input_require_grads()
        base.config.use_cache = False
        self.encoder = Encoder(self.tokenizer, run.config.prompt, run.periods.titles)
        self.answers = [self.tokenizer.convert_tokens_to_ids(word) for word in ("No", "Yes")]
        self.end = responses(self.tokenizer)

    def table(self) -> dict[str, float]:
        """Return the mean AUC of every row, each row trained and scored on its own."""
        found = {}
        for strategy in self.run.strategies[0]:
            plans = {t: p for t in self._models() if (p := strategy.plan(t)) is not None and p.adapters}
            if not plans:  # the frozen backbone, which is no row of the paper's
                continue
            own: dict[str, Adapter] = {}
            for spec in closure([s for p in plans.values() for s in p.specs()]):
                assert isinstance(spec, AdapterSpec)
                with self.cost.stage("train", spec.digest):
                    own[spec.digest] = self._fit(spec, own)
            values = [self._tested(t, plan, own) for t, plan in plans.items()]
            found[strategy.name] = float(np.mean(values))
            print(f"reference: {strategy.name} {found[strategy.name]:.4f}", flush=True)
        return found

    def _models(self) -> range:
        return range(self.run.config.first_test - 1, self.run.periods.count)

    def _tested(self, t: int, plan: Plan, own: dict[str, Adapter]) -> float:
        weights = plan.grid[0]
        if len(plan.grid) > 1:
            held = Slice(t, "validation")
            label, value = self.run.periods.rows(*held).label, []
            known = self._members("search", plan, own, held)
            for w in plan.grid:
                value.append(auc_or_log_loss(label, logit(self._score("search", plan, own, w, held, known))))
            weights = plan.grid[int(np.argmax(value))]
        s = Slice(t + 1, "all")
        score = self._score("score", plan, own, weights, s, self._members("score", plan, own, s))
        return auc(self.run.periods.rows(*s).label, score)

    def _members(self, stage: str, plan: Plan, own: dict[str, Adapter], s: Slice) -> list[np.ndarray]:
        """Return the saved predictions of an ensemble's members; none for a merge of parameters."""
        if plan.merge in PARAMETER_MERGES:
            return []
        return [self._margins(stage, spec.digest, own[spec.digest], s) for spec in plan.adapters]

    def _score(
        self,
        stage: str,
        plan: Plan,
        own: dict[str, Adapter],
        weights: tuple[float, ...],
        s: Slice,
        known: list[np.ndarray],
    ) -> np.ndarray:
        if not known:
            digests = tuple(spec.digest for spec in plan.adapters)
            merged = PARAMETER_MERGES[plan.merge]([own[d] for d in digests], weights)
            known = [self._margins(stage, (plan.merge, digests, weights), merged, s)]
        return combine(steps.model(0, "reference", 0, plan, weights), known)

    def _margins(self, stage: str, name: Any, adapter: Adapter, s: Slice) -> np.ndarray:
        """Return what evaluate.py saves of an adapter on a slice."""
        with self.cost.stage(stage, (name, s)):
            self.model.wear(adapter)
            margin, _ = self._trainer([], [], per_device_eval_batch_size=32).predict(self._rows([s])).predictions
            return np.asarray(margin)

    def _rows(self, slices: Sequence[Slice]) -> list[Row]:
        samples = (self.run.periods.rows(*s) for s in slices)
        return [row for some in samples for row in tokenised(self.encoder, some, self.end, self.over)]

    def _fit(self, spec: AdapterSpec, own: dict[str, Adapter]) -> Adapter:
        """Train as train.py does, and return the weights of the best validation."""
        self.model.reset(spec.seed)
        if spec.init is not None:
            self.model.restore(own[spec.init.digest].state)
        best: list[tuple[float, Adapter]] = []

        class Keep(TrainerCallback):
            """Keep the best weights in memory too, not in the folder alone."""

            def on_evaluate(_, args: Any, state: Any, control: Any, metrics: dict[str, float], **more: Any) -> None:
                if not best or metrics["eval_auc"] > best[0][0]:
                    best[:] = [(metrics["eval_auc"], self.model.snapshot())]

        recipe = spec.recipe
        micro = min(32, recipe.batch_size)
        trainer = self._trainer(
            self._rows(spec.train),
            self._rows(spec.validation),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=recipe.batch_size // micro,
            num_train_epochs=recipe.epochs,
            learning_rate=recipe.lr,
            lr_scheduler_type="constant",
            max_grad_norm=recipe.clip,
            weight_decay=recipe.weight_decay,
            seed=spec.seed,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=recipe.eval_every,
            save_strategy="steps",
            save_steps=recipe.eval_every,
            save_total_limit=5,
        )
        trainer.add_callback(Keep())
        if spec.keep_old:
            trainer.evaluate()
        trainer.train()
        if not best:  # fewer steps than `eval_every`
            trainer.evaluate()
        return best[0][1]

    def _trainer(self, train: list[Any], held: list[Any], **more: Any) -> Trainer:
        def at_answer(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            place = -len(self.end[0])
            pair = logits.softmax(-1)[:, place - 1][:, self.answers].float().log()
            return pair[:, 1] - pair[:, 0], (labels[:, place] == self.answers[1]).long()

        def figures(found: Any) -> dict[str, float]:
            margin, label = found.predictions
            return {"auc": auc_or_log_loss(label, margin)}

        self.model.peft.__dict__.pop("forward", None)  # which accelerate wraps, once more for every Trainer
        arguments = TrainingArguments(
            output_dir=str(self.folder),
            bf16=self.half,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            **more,
        )
        trainer = Trainer(
            model=self.model.peft,
            args=arguments,
            train_dataset=train,
            eval_dataset=held,
            data_collator=DataCollatorForSeq2Seq(self.tokenizer, pad_to_multiple_of=8, padding=True),
            compute_metrics=figures,
            preprocess_logits_for_metrics=at_answer,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def logit(probability: np.ndarray) -> np.ndarray:
    """Return log-odds."""
    return np.log(probability) - np.log1p(-probability)  # type: ignore[no-any-return]


def start_seconds(folder: Path, times: int = 3) -> float:
    """Return the wall seconds (median) of a process that imports what train.py does and loads the backbone."""
    code = (
        "import numpy, torch, transformers, peft, sys; "
        "transformers.AutoTokenizer.from_pretrained(sys.argv[1]); "
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
        "peft.get_peft_model(model, peft.LoraConfig(target_modules=['q_proj', 'v_proj'])); "
        "transformers.Trainer; transformers.EarlyStoppingCallback"
    )
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))
