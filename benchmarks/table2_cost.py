"""Measure what Table 2 of the LSAT paper costs end to end, the way of the paper's code and ours, in one run.

    python benchmarks/table2_cost.py --json benchmarks/results/table2_cost.json

The reference way is that of the paper's code (methods.md 2): every row trains its own adapters (82 of them with 20
periods and m = 10) with HF Trainer + PEFT, padded, the loss over the whole vocabulary on all tokens; every row does its
own inference by transformers with full logits, LSAT-TA once per lambda. It is spared what that code does besides: one
process and one load of the backbone per training. Ours is a study over the local backend: 39 distinct adapters, the
lean engine, stored scores. Both have the same log, backbone, splits, recipe (batch, epochs, learning rate, a validation
per epoch, best weights kept), machine and number of threads. The backbone is built before the clock starts. Nothing is
extrapolated: the log is so short that both end. Factors are of processor time: `sharing` is all trainings of the
reference way over its distinct ones, `engine` these over ours. `--dtype auto` puts our backbone into bfloat16 where the
machine multiplies it natively; the reference way keeps float32, its default. With `--noise N` our way is repeated
afterwards with N other seeds: `auc_sd` is a row's standard deviation over all of them, what chance alone makes of it,
and `auc_gap` is to be read beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import machine, matmul_peak
from lsat_ray import config as configs
from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.adapters.merge import PARAMETER_MERGES
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.backbone.load import load
from lsat_ray.config import Experiment
from lsat_ray.data.periods import Slice
from lsat_ray.evaluation.metrics import auc, auc_or_log_loss
from lsat_ray.prompts.encode import Encoder
from lsat_ray.runs import steps
from lsat_ray.runs.context import Run, opened
from lsat_ray.runs.local import LocalBackend
from lsat_ray.runs.study import needed
from lsat_ray.scoring.model import combine
from lsat_ray.strategies import Plan
from lsat_ray.strategies.graph import closure

STAGES = ("train", "search", "score")


@dataclass
class Cost:
    """Seconds of a way by stage: wall clock and processor time."""

    wall: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    cpu: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    by_spec: dict[str, list[float]] = field(default_factory=dict)
    """Processor seconds of each training, by digest: as many as there were."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge a block to a stage."""
        began, busy = time.perf_counter(), time.process_time()
        yield
        self.wall[name] += time.perf_counter() - began
        self.cpu[name] += time.process_time() - busy


class Reference:
    """The way of the paper's code."""

    def __init__(self, run: Run, model: AdaptedBackbone, tokenizer: Any, batch: int) -> None:
        self.run, self.model, self.tokenizer, self.batch = run, model, tokenizer, batch
        self.encoder = Encoder(tokenizer, run.config.prompt, run.periods.titles)
        self.cost = Cost()
        self.answers = [tokenizer.convert_tokens_to_ids(word) for word in ("No", "Yes")]

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
                busy = time.process_time()
                with self.cost.stage("train"):
                    own[spec.digest] = self._fit(spec, own)
                self.cost.by_spec.setdefault(spec.digest, []).append(time.process_time() - busy)
            values = [self._tested(t, plan, own) for t, plan in plans.items()]
            found[strategy.name] = float(np.mean(values))
            print(f"reference: {strategy.name} {found[strategy.name]:.4f}", flush=True)
        return found

    def _models(self) -> range:
        return range(self.run.config.first_test - 1, self.run.periods.count)

    def _tested(self, t: int, plan: Plan, own: dict[str, Adapter]) -> float:
        adapters = [own[s.digest] for s in plan.adapters]
        weights = plan.grid[0]
        if len(plan.grid) > 1:
            with self.cost.stage("search"):
                label, value = self.run.periods.rows(t, "validation").label, []
                known = self._members(plan, adapters, Slice(t, "validation"))
                for w in plan.grid:
                    value.append(auc(label, self._score(plan, adapters, w, Slice(t, "validation"), known)))
                weights = plan.grid[int(np.argmax(value))]
        with self.cost.stage("score"):
            s = Slice(t + 1, "all")
            score = self._score(plan, adapters, weights, s, self._members(plan, adapters, s))
        return auc(self.run.periods.rows(t + 1).label, score)

    def _members(self, plan: Plan, adapters: list[Adapter], s: Slice) -> list[np.ndarray]:
        """Return the saved predictions of an ensemble's members; none for a merge of parameters."""
        return [] if plan.merge in PARAMETER_MERGES else [self._margins(a, s) for a in adapters]

    def _score(
        self, plan: Plan, adapters: list[Adapter], weights: tuple[float, ...], s: Slice, known: list[np.ndarray]
    ) -> np.ndarray:
        margins = known or [self._margins(PARAMETER_MERGES[plan.merge](adapters, weights), s)]
        return combine(steps.model(0, "reference", 0, plan, weights), margins)

    def _margins(self, adapter: Adapter, s: Slice) -> np.ndarray:
        self.model.wear(adapter)
        return self._infer(self.encoder.prompt_ids(self.run.periods.rows(s.period, s.part)))

    def _infer(self, prompts: list[list[int]]) -> np.ndarray:
        """Return l_Yes - l_No of each prompt: padded batches in the log's order, logits of the whole vocabulary."""
        self.model.eval()
        out = []
        with torch.no_grad():
            for begin in range(0, len(prompts), self.batch):
                part = prompts[begin : begin + self.batch]
                longest = max(map(len, part))
                ids = torch.zeros(len(part), longest, dtype=torch.long)
                seen = torch.zeros_like(ids)
                for i, p in enumerate(part):
                    ids[i, longest - len(p) :], seen[i, longest - len(p) :] = torch.tensor(p), 1
                logits = self.model.peft(input_ids=ids, attention_mask=seen).logits
                pair = logits[:, -1, self.answers].float()
                out.append((pair[:, 1] - pair[:, 0]).numpy())
        return np.concatenate(out)

    def _fit(self, spec: AdapterSpec, own: dict[str, Adapter]) -> Adapter:
        from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

        recipe, samples = spec.recipe, [self.run.periods.rows(s.period, s.part) for s in spec.train]
        prompts = [p for part in samples for p in self.encoder.prompt_ids(part)]
        end = [
            [*self.tokenizer.encode(a, add_special_tokens=False), self.tokenizer.eos_token_id] for a in ("No.", "Yes.")
        ]
        labels = np.concatenate([part.label for part in samples])
        rows = [{"input_ids": p + end[int(y)]} for p, y in zip(prompts, labels, strict=True)]
        (held,) = spec.validation
        validation = self.run.periods.rows(held.period, held.part)
        asked = self.encoder.prompt_ids(validation)
        self.model.reset(spec.seed)
        if spec.init is not None:
            self.model.restore(own[spec.init.digest].state)
        best: list[tuple[float, Adapter]] = []

        def validate() -> None:
            value = auc_or_log_loss(validation.label, self._infer(asked))
            if not best or value > best[0][0]:
                best[:] = [(value, self.model.snapshot())]

        class Validate(TrainerCallback):
            """Keep the best weights."""

            def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                validate()

        if spec.keep_old:
            validate()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=recipe.batch_size,
                num_train_epochs=recipe.epochs,
                learning_rate=recipe.lr,
                lr_scheduler_type="constant",
                max_grad_norm=recipe.clip,
                weight_decay=recipe.weight_decay,
                seed=spec.seed,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
            )
            collator = DataCollatorForLanguageModeling(self.tokenizer, mlm=False)
            Trainer(
                model=self.model.peft,
                args=arguments,
                train_dataset=rows,
                data_collator=collator,
                callbacks=[Validate()],
            ).train()
        return best[0][1]


def ours(run: Run) -> tuple[dict[str, float], Cost, set[str]]:
    """Return the mean AUC of every row, the costs and the adapters' digests, by the steps of a study."""
    cost, last, seed = Cost(), run.periods.count, run.config.seeds[0]
    for t in range(1, last + 1):
        run.backend.arrive(t)
    specs = needed(run)
    with cost.stage("train"):
        steps.train(run, last, specs)
    with cost.stage("search"):
        steps.choose(run, seed, range(run.config.first_test - 1, last))
    with cost.stage("score"):
        steps.measure(run, seed, run.tested)
    found = {}
    for strategy in run.strategies[seed]:
        records = [run.ledger.get(seed, strategy.name, t, "score") for t in run.tested]
        found[strategy.name] = float(np.mean([r["auc"] for r in records if r]))
        print(f"ours, seed {seed}: {strategy.name} {found[strategy.name]:.4f}", flush=True)
    return found, cost, {s.digest for s in specs}


def settings(options: argparse.Namespace) -> Experiment:
    """Return the experiment: the embedded stream, cut short, the seven rows."""
    long = options.periods // 2
    nano = f"hidden: {options.hidden}, layers: {options.layers}, vocabulary: {options.vocabulary}, epochs: 1"
    words = [
        f"data.keep_last={options.periods * options.samples}",
        f"data.synthetic={{users: 60, items: 80, warmup: 600, half_life: {8 * options.samples}}}",
        f"periods={{number: {options.periods}, validation: 0.2}}",
        f"replay.long_periods={long}",
        "study.every_period=false",
        "strategies=[full-retraining, fine-tuning, short-term, long-term, lsat-en, lsat-en-full, lsat-ta]",
        f"backbone={{device: cpu, dtype: {options.dtype}, nano: {{{nano}}}}}",
        "recipe={lr: 0.005, epochs: 2, batch_size: 32, select: auc}",
        f"engine={{backend: local, kind: torch, workers: 1, sessions: 1, threads: {options.threads}}}",
    ]
    return configs.load(None, words, "table2_cost")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Run both ways and return the tree that is written."""
    torch.set_num_threads(options.threads)
    config = settings(options)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with opened(config, root, LocalBackend(config), print, serve=False) as run:
            mine, cost, digests = ours(run)
            plain = config.backbone.model_copy(update={"dtype": "float32"})
            backbone = load(plain, next((root / "backbones").iterdir()))
            reference = Reference(run, AdaptedBackbone(backbone, config.lora), backbone.tokenizer, options.batch)
            theirs = reference.table()
        others = []
        for seed in range(1, 1 + options.noise):
            again = config.model_copy(update={"seeds": [seed], "name": f"{config.name}{seed}"})
            with opened(again, root, LocalBackend(again), print, serve=False) as run:
                others.append(ours(run)[0])
    other = reference.cost
    trainings = [seconds for several in other.by_spec.values() for seconds in several]
    once = sum(np.mean(several) for several in other.by_spec.values())
    assert other.by_spec.keys() == digests, "both ways train the same adapters"
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "wall_ratio": sum(other.wall.values()) / sum(cost.wall.values()),
        "cpu_ratio": sum(other.cpu.values()) / sum(cost.cpu.values()),
        "sharing": sum(trainings) / once,
        "engine": once / cost.cpu["train"],
        "scoring": other.cpu["score"] / cost.cpu["score"],
        "search": other.cpu["search"] / cost.cpu["search"],
        "auc_gap": {name: mine[name] - theirs[name] for name in theirs},
        "auc_sd": {name: float(np.std([m[name] for m in (mine, *others)], ddof=1)) for name in theirs if others},
        "trainings": {"reference": len(trainings), "ours": len(digests)},
        "auc": {"reference": theirs, "ours": mine},
        "wall_seconds": {"reference": other.wall, "ours": cost.wall},
        "cpu_seconds": {"reference": other.cpu, "ours": cost.cpu},
        "config": json.loads(config.model_dump_json()),
        "command": " ".join(["python", "benchmarks/table2_cost.py", *options.words]),
        "commit": done.stdout.strip() or None,
        "machine": machine(torch.device("cpu"), options.threads, matmul_peak(torch.device("cpu"), 512, 0.2)),
    }


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--periods", type=int, default=20, help="20 give the paper's 82 and 39 trainings")
    parser.add_argument("--samples", type=int, default=40, help="per period")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="float32", help="of our backbone")
    parser.add_argument("--noise", type=int, default=0, help="other seeds that our way is repeated with")
    parser.add_argument("--vocabulary", type=int, default=768)
    parser.add_argument("--batch", type=int, default=32, help="of the reference way's inference")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(words)
    options.words = words
    return options


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure and write."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = parse(sys.argv[1:] if words is None else words)
    tree = compare(options)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(tree, indent=2) + "\n")
    keys = ("wall_ratio", "cpu_ratio", "sharing", "engine", "scoring", "search")
    print(", ".join(f"{k} {tree[k]:.2f}" for k in keys))
    return tree


if __name__ == "__main__":
    main()
