"""What `doctor` says of the backbone: answer tokens, lengths of prompts, memory, ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsat_ray.backbone import nano
from lsat_ray.backbone.load import outline
from lsat_ray.cli.finding import Finding
from lsat_ray.cli.machine import host_memory
from lsat_ray.config import BackboneConfig, Experiment
from lsat_ray.data.periods import Periods
from lsat_ray.errors import LsatError
from lsat_ray.prompts.answer import find_answer_tokens
from lsat_ray.prompts.encode import Encoder
from lsat_ray.prompts.tallrec import preamble, target_text
from lsat_ray.training import memory

PROMPTS = 1000
"""Prompts that are measured, evenly spread over the log."""
MANY = 0.01
"""Share of truncated prompts above which it is warned of."""


def findings(config: Experiment, periods: Periods, runs_dir: Path) -> Iterator[Finding]:
    """Yield what is to be said of the backbone; its weights are not loaded.

    Raises:
        LsatError: when there is no model at `backbone.path`, or its tokenizer has no single answer tokens.
    """
    tokenizer, model, where = skeleton(config, periods)
    size = sum(p.numel() for p in model.parameters())
    yield Finding("ok", "backbone", f"{config.backbone.path}: {size / 1e6:,.1f}M parameters, {where}")
    word = config.prompt.item_word
    answers = find_answer_tokens(tokenizer, preamble(word) + '"a"\nUser Unpreference: \n' + target_text("b", word))
    spelt = ", ".join(f"{tokenizer.decode([i])!r} = {i}" for i in (answers.yes, answers.no))
    yield Finding("ok", "answer tokens", spelt)
    yield lengths(config, periods, tokenizer)
    yield from fits(config, model)


def skeleton(config: Experiment, periods: Periods) -> tuple[Any, Any, str]:
    """Return the tokenizer, the model without weights, and where both come from."""
    if config.backbone.path == "nano":
        samples = periods.warmup()
        if len(samples) == 0:
            raise LsatError("backbone.nano: no samples before the first period; lower data.keep_last")
        texts = nano.texts(periods.titles, samples, config.prompt.item_word)
        tokenizer = nano.build_tokenizer(texts, config.backbone.nano.vocabulary)
        with torch.device("meta"):
            return tokenizer, nano.build_model(config.backbone.nano, tokenizer), "to be built from the warm-up"
    from transformers import AutoTokenizer

    folder, where = shape_of(config.backbone)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LsatError(f"backbone.path: {folder} is not a causal LM: {reason}") from error
    return tokenizer, outline(folder, config.backbone), where


def shape_of(config: BackboneConfig) -> tuple[Path, str]:
    """Return a folder with config and tokenizer of the backbone; weights of a hub model are not downloaded.

    Raises:
        LsatError: when the model is neither here nor reachable on the hub.
    """
    from lsat_ray.backbone.load import locate

    folder = Path(config.path).expanduser()
    if folder.exists() or config.path.count("/") != 1:
        return locate(config), "in its folder"
    from huggingface_hub import snapshot_download

    try:
        whole = snapshot_download(config.path, revision=config.revision, local_files_only=True)
        if any(Path(whole).glob("*.safetensors")):
            return Path(whole), "in the hub's cache"
    except Exception:  # noqa: BLE001 - not in the cache, for whatever reason: ask the hub
        pass
    patterns = ["*.json", "*.model", "tokenizer*"]
    try:
        small = snapshot_download(config.path, revision=config.revision, allow_patterns=patterns)
    except Exception as error:
        raise LsatError(
            f"backbone.path: {config.path} is neither a folder nor reachable on the hub ({type(error).__name__}); "
            "check the name, log in, or download it and give its folder"
        ) from error
    return Path(small), "weights not downloaded yet"


def lengths(config: Experiment, periods: Periods, tokenizer: Any) -> Finding:
    """Say how long the prompts are and how many lose history to `prompt.max_tokens`."""
    rows = periods.samples.take(slice(periods.borders[0], None))
    rows = rows.take(np.linspace(0, len(rows) - 1, min(len(rows), PROMPTS)).astype(int))
    unlimited = config.prompt.model_copy(update={"max_tokens": 1 << 20, "layout": "exact"})
    length = np.array([len(ids) for ids in Encoder(tokenizer, unlimited, periods.titles).prompt_ids(rows)])
    limit = config.prompt.max_tokens
    share = float((length > limit).mean())
    text = (
        f"{int(np.median(length))} tokens in the median, {int(length.max())} at most (of {len(length)} looked at); "
        f"{share:.1%} are cut to prompt.max_tokens {limit}"
    )
    if share > MANY:
        remedy = f"--set prompt.max_tokens={int(length.max())}, or a smaller data.history"
        return Finding("warn", "prompts", text, remedy)
    return Finding("ok", "prompts", text)


def fits(config: Experiment, model: Any) -> Iterator[Finding]:
    """Say what a training worker and a replica need, and which ZeRO stage that leads to."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    dressed, engine = memory.dressed(model, config.lora), config.engine
    have = host_memory() // (engine.workers * engine.sessions)
    if engine.gpus:
        if not torch.cuda.device_count():
            stage = memory.stage_of(dressed, config, 1 << 60)
            need = memory.estimate(dressed, engine, config.recipe, config.prompt, stage)
            text = f"a training worker needs about {need.total / 2**30:.2f} GiB of its GPU; none is here"
            yield Finding("warn", "memory", text, "run doctor on the machine that trains")
            return
        have = memory.available(torch.device("cuda", 0), engine)
    if engine.kind == "deepspeed" and engine.zero == "auto":
        stage, words = memory.choose(dressed, engine, config.recipe, config.prompt, have)
    else:
        stage = memory.stage_of(dressed, config, have)
        words = f"{engine.kind}" + (f", ZeRO stage {stage}" if engine.kind == "deepspeed" else "")
    need = memory.estimate(dressed, engine, config.recipe, config.prompt, stage)
    if not words.startswith("ZeRO"):
        words += f": a worker needs about {need.total / 2**30:.2f} of {have / 2**30:.2f} GiB"
    words += f"; a replica holds {weights / 2**30:.2f} GiB of weights"
    if config.backbone.quantization:
        words += " (estimated without quantisation)"
    if refused := memory.refusal(dressed, config, have):
        remedy = refused.partition("ways out: ")[2]
        yield Finding("warn" if config.backbone.quantization else "fail", "memory", words, remedy)
    else:
        yield Finding("ok", "memory", words)
    if config.serve.gpus and engine.gpus and not config.backbone.quantization:
        card = memory.size_of(torch.device("cuda", 0))
        states = config.serve.states_mib << 20
        if refused := memory.replica_refusal(dressed, engine.batch_tokens, states, card, config.serve.gpus):
            text, _, remedy = refused.removeprefix("memory: ").partition("; ways out: ")
            yield Finding("fail", "memory", text, remedy)
