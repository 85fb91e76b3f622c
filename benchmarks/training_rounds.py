"""What `train_throughput.py` runs in each round: the rival, our step loop, and plain loops with single levers."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.measuring import clock
from lsat_ray import data
from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.backbone import nano
from lsat_ray.backbone.forward import hidden_states
from lsat_ray.backbone.load import dtype_of, wrap
from lsat_ray.config import BackboneConfig, DataConfig, LoraSettings, PeriodsConfig, PromptConfig, Recipe
from lsat_ray.data.periods import Periods, cut
from lsat_ray.prompts.batch import Batch, Encoded, collate, plan_epoch
from lsat_ray.prompts.encode import Encoder
from lsat_ray.training.fit import TorchEngine, gradients

Shape = dict[str, int]
Spent = tuple[int, int, float, float]
Round = Callable[[float], Spent]
"""At least so many seconds -> targets, tokens computed, seconds, seconds of processor time."""
Turn = Callable[[float], tuple[Spent, float]]
"""The same -> what a round spent, and the peak of memory in MiB (`measuring.peak_memory`)."""
SHAPES: dict[str, Shape] = {
    "toy": {"hidden": 32, "layers": 2, "heads": 4, "kv": 4, "mlp": 64, "vocabulary": 1000},
    "nano": {"hidden": 64, "layers": 2, "heads": 4, "kv": 4, "mlp": 168, "vocabulary": 768},
    "20m": {"hidden": 384, "layers": 6, "heads": 6, "kv": 6, "mlp": 1024, "vocabulary": 32000},
    "0.1b": {"hidden": 768, "layers": 12, "heads": 12, "kv": 12, "mlp": 2048, "vocabulary": 32000},
    "1b": {"hidden": 2048, "layers": 16, "heads": 32, "kv": 8, "mlp": 8192, "vocabulary": 128256},
    "7b": {"hidden": 4096, "layers": 32, "heads": 32, "kv": 32, "mlp": 11008, "vocabulary": 32000},
}
LAYOUTS = {
    "exact": PromptConfig(),
    "shared": PromptConfig(layout="shared-history", targets=8),
    "stream": PromptConfig(layout="stream", targets=16),
}


@dataclass
class Ground:
    """What the methods of one process share."""

    shape: Shape
    device: torch.device
    periods: Periods
    tokenizer: Any
    model: AdaptedBackbone
    answers: list[int]
    encoded: dict[str, Encoded]
    prompts: list[list[int]]
    """Whole prompts of the training rows, for the plain methods."""
    labels: np.ndarray
    batch: int
    """Targets of a forward pass of the baseline and of the exact layout."""
    dtype: torch.dtype
    """Of the backbone's weights."""


def prepare(options: argparse.Namespace) -> Ground:
    """Build log, tokenizer, backbone and encodings."""
    shape = SHAPES[options.shape]
    source = DataConfig(keep_last=options.rows)
    if options.log:
        source = DataConfig(format="movielens", path=options.log, keep_last=options.rows)
    cuts = PeriodsConfig(number=2)
    periods = cut(data.load(source), source, cuts)
    samples = periods.samples.take(slice(periods.borders[0], None))
    vocabulary = shape["vocabulary"]
    texts = nano.texts(periods.titles, samples, "movie")
    tokenizer = nano.build_tokenizer(texts, min(vocabulary, 8000))
    device = torch.device(options.device)
    dtype = getattr(torch, dtype_of(BackboneConfig(dtype=options.dtype, device=options.device)))
    model = dressed(shape, device, dtype, tokenizer)
    encoded = {name: Encoder(tokenizer, config, periods.titles)(samples) for name, config in LAYOUTS.items()}
    prompts = Encoder(tokenizer, LAYOUTS["exact"], periods.titles).prompt_ids(samples)
    answers = [tokenizer.convert_tokens_to_ids(t) for t in ("No", "Yes")]
    return Ground(
        shape, device, periods, tokenizer, model, answers, encoded, prompts, samples.label, options.batch, dtype
    )


def dressed(shape: Shape, device: torch.device, dtype: torch.dtype, tokenizer: Any) -> AdaptedBackbone:
    """Return a random backbone of a shape with a fresh training slot."""
    model = AdaptedBackbone(wrap(random_llama(shape, device, dtype), tokenizer, "random"), LoraSettings())
    model.reset(0)
    return model


def random_llama(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a causal LM of a shape with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv"],
        intermediate_size=shape["mlp"],
        vocab_size=shape["vocabulary"],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            return LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(torch.float32)


def ours(ground: Ground, layout: str, batch: int) -> Round:
    """Return a round of our step loop in a layout; state carries over between rounds."""
    encoded, engine, order = ground.encoded[layout], TorchEngine(), np.random.default_rng(0)
    plan: list[np.ndarray] = []

    def run(seconds: float) -> Spent:
        engine.begin(ground.model, Recipe(), 1)
        targets = tokens = 0
        began, busy = clock(ground.device), time.process_time()
        while (spent := clock(ground.device) - began) < seconds or not targets:
            if not plan:
                plan.extend(plan_epoch(encoded, batch, order))
            group = plan.pop()
            gradients(ground.model, engine, encoded, group, 1)
            engine.step(1e-3)
            targets += int(encoded.targets[group].sum())
            tokens += len(group) * int(encoded.lengths[group].max()) + len(encoded.prefix)
        used = time.process_time() - busy
        engine.finish()
        return targets, tokens, spent, used

    return run


def trainer(ground: Ground, dtype: torch.dtype = torch.float32) -> Round:
    """Return a round of HF Trainer + PEFT; the first step of each call is not counted.

    In float32, its default, or with weights in bfloat16 and its `bf16` switch.
    """
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    end = [
        [*ground.tokenizer.encode(answer, add_special_tokens=False), ground.tokenizer.eos_token_id]
        for answer in ("No.", "Yes.")
    ]
    rows = [{"input_ids": p + end[int(y)]} for p, y in zip(ground.prompts, ground.labels, strict=True)]
    half = dtype == torch.bfloat16
    model = ground.model if dtype == ground.dtype else dressed(ground.shape, ground.device, dtype, ground.tokenizer)
    collator = DataCollatorForLanguageModeling(ground.tokenizer, mlm=False)
    seen = {"tokens": 0}

    def counted(features: list[dict[str, Any]]) -> Any:
        out = collator(features)
        seen["tokens"] += out["input_ids"].numel()
        return out

    class Watch(TrainerCallback):
        """Note the clock after each step, and stop in time."""

        def __init__(self, seconds: float) -> None:
            self.seconds, self.ends = seconds, []  # type: float, list[tuple[float, int, float]]

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.ends.append((clock(ground.device), seen["tokens"], time.process_time()))
            if len(self.ends) > 1 and self.ends[-1][0] - self.ends[0][0] >= self.seconds:
                control.should_training_stop = True

    def run(seconds: float) -> Spent:
        watch = Watch(seconds)
        arguments = TrainingArguments(
            output_dir=str(Path(tempfile.gettempdir()) / "lsat_ray_trainer"),
            per_device_train_batch_size=ground.batch,
            max_steps=10_000,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=ground.device.type == "cpu",
            bf16=half,
            dataloader_pin_memory=ground.device.type == "cuda",
        )
        Trainer(model=model.peft, args=arguments, train_dataset=rows, data_collator=counted, callbacks=[watch]).train()
        (first, before, idle), (last, after, busy) = watch.ends[0], watch.ends[-1]
        return ground.batch * (len(watch.ends) - 1), after - before, last - first, busy - idle

    return run


def lever(ground: Ground, *levers: str) -> Round:
    """Return a round of a plain loop with some levers: `head`, `prefix`, `bucket`, `walk`, `pack`, `full`.

    Without any: padded random batches, full logits, two-class loss at the answer, LoRA weights trained. `full` trains
    all weights instead of the adapter's, to show what LoRA saves.
    """
    model, encoded = ground.model, ground.encoded["exact"]
    plain = encoded if "prefix" in levers or "walk" in levers else written_out(encoded)
    head = model.peft.get_base_model().get_output_embeddings()
    decoder = model.peft.get_base_model().get_decoder()
    rows_of_head = model.get_buffer("head")
    order, state = np.random.default_rng(0), {"plan": []}  # type: ignore[var-annotated]

    def loss_of(batch: Batch) -> torch.Tensor:
        if "walk" in levers:
            return functional.cross_entropy(model(batch), batch.label.long())
        hidden = hidden_states(decoder, batch)
        if "head" in levers:
            read = hidden[batch.answer[:, 0], batch.answer[:, 1]].float() @ rows_of_head.T
        else:
            logits = head(hidden).float()
            read = logits[batch.answer[:, 0], batch.answer[:, 1]][:, ground.answers]
        return functional.cross_entropy(read, batch.label.long())

    def run(seconds: float) -> Spent:
        if "full" in levers:
            for parameter in model.peft.parameters():
                parameter.requires_grad_(True)
        model.train()
        model.packing = "pack" in levers
        targets = tokens = 0
        began, busy = clock(ground.device), time.process_time()
        while (spent := clock(ground.device) - began) < seconds or not targets:
            if not state["plan"]:
                if "bucket" in levers:
                    state["plan"] = plan_epoch(plain, ground.batch, order)
                else:
                    state["plan"] = np.array_split(order.permutation(len(plain)), len(plain) // ground.batch)
            group = state["plan"].pop()
            loss_of(collate(plain, group).to(ground.device)).backward()  # type: ignore[no-untyped-call]
            for parameter in model.peft.parameters():
                parameter.grad = None
            targets += len(group)
            tokens += len(group) * int(plain.lengths[group].max()) + len(plain.prefix)
        used = time.process_time() - busy
        model.packing = False
        if "full" in levers:
            for name, parameter in model.peft.named_parameters():
                parameter.requires_grad_(".lora_" in name)
        return targets, tokens, spent, used

    return run


def written_out(encoded: Encoded) -> Encoded:
    """Return the sequences with the shared prefix in each."""
    prefix = len(encoded.prefix)
    spans = zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)
    pieces = [np.concatenate([encoded.prefix, encoded.tokens[a:b]]) for a, b in spans]
    offsets = encoded.offsets + prefix * np.arange(len(encoded) + 1)
    return Encoded(
        encoded.prefix[:0],
        np.concatenate(pieces),
        offsets,
        offsets[1:] - 1,
        encoded.sequence,
        encoded.row,
        encoded.label,
    )
