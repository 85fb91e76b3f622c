"""Backbones that know the codes: any causal LM with the codes added, or a small LLaMA built on block 0."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lsat_ray.backbone import nano
from lsat_ray.backbone.forward import answer_states
from lsat_ray.backbone.load import dtype_of, fingerprint, pick_device
from lsat_ray.config import BackboneConfig, NanoConfig
from lsat_ray.errors import LsatError
from lsat_ray.generative.blocks import Blocks, Split
from lsat_ray.generative.encode import Codes, code_names, encode_targets, find_codes
from lsat_ray.prompts.batch import Encoded, collate, plan_epoch, token_budget_batches


@dataclass
class CodeBackbone:
    """A causal LM whose vocabulary holds the codes."""

    model: Any
    """transformers causal LM, frozen."""
    tokenizer: Any
    codes: Codes
    fingerprint: str
    """SHA-256 over weights, tokenizer and type."""


def load(config: BackboneConfig, folder: Path, blocks: Blocks, text: bool) -> CodeBackbone:
    """Load a Hugging Face folder; codes that its tokenizer lacks are added, with seeded rows in both embeddings.

    Args:
        config: dtype, device, attention.
        folder: the weights.
        blocks: the log, whose codes are needed.
        text: whether the prompt's words stand around the history.

    Raises:
        LsatError: when the folder is no causal LM.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"dtype": getattr(torch, dtype_of(config)), "attn_implementation": config.attention}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, **options
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LsatError(f"backbone.path: {folder} does not load as a causal LM: {reason}") from error
    levels = blocks.codes.shape[1]
    add_codes(model, tokenizer, levels, blocks.size)
    model.to(pick_device(config.device)).eval()
    model.requires_grad_(False)
    codes = find_codes(tokenizer, levels, blocks.size, text)
    return CodeBackbone(model, tokenizer, codes, fingerprint(folder, config))


def add_codes(model: Any, tokenizer: Any, levels: int, size: int, seed: int = 0) -> None:
    """Add the codes that a tokenizer lacks; a new row is the mean of the old ones plus a little seeded noise."""
    before = model.get_input_embeddings().weight.shape[0]
    known = len(tokenizer)
    if not tokenizer.add_tokens(code_names(levels, size)):
        return
    if len(tokenizer) > before:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    tables = {id(t.weight): t.weight for t in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for weight in tables.values():
            old = weight[:known].float()
            noise = torch.randn(len(tokenizer) - known, weight.shape[1], generator=generator)
            weight[known : len(tokenizer)] = old.mean(0) + old.std() * noise.to(old.device)


def build(
    blocks: Blocks,
    config: NanoConfig,
    root: Path,
    history: int = 20,
    split: Split = "leave-two-out",
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Build a small LLaMA of the nano shape on block 0, or find it built, and return its Hugging Face folder.

    Its tokenizer knows codes only. All weights are trained on the block's training targets for at most
    `config.epochs`; the epoch with the lowest loss on the block's validation targets is kept, so neither the block's
    tests nor a later block has been seen. The folder's name is the SHA-256 of log, shape and split.
    """
    key = json.dumps([blocks.fingerprint, config.model_dump(), history, split], sort_keys=True)
    final = Path(root) / f"codes-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if (final / "config.json").is_file():
        return final
    levels = blocks.codes.shape[1]
    tokenizer = build_tokenizer(levels, blocks.size)
    model = nano.build_model(config, tokenizer)
    codes = find_codes(tokenizer, levels, blocks.size, text=False)
    train, validation = (
        encode_targets(blocks, blocks.rows(1, part, split), codes, history) for part in ("train", "validation")
    )
    pretrain(model, codes, train, validation, config, progress)
    draft = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    model.save_pretrained(draft, safe_serialization=True)
    tokenizer.save_pretrained(draft)
    try:
        os.rename(draft, final)
    except OSError:
        if not (final / "config.json").is_file():
            raise
        shutil.rmtree(draft)
    return final


def build_tokenizer(levels: int, size: int) -> Any:
    """Return a tokenizer whose whole vocabulary is padding, begin, end and the codes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", *code_names(levels, size)]
    tokenizer = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("><", "merged_with_previous")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )


def pretrain(
    model: Any,
    codes: Codes,
    train: Encoded,
    validation: Encoded,
    config: NanoConfig,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Fit all weights on the next code, AdamW with linear decay; keep the epoch with the lowest validation loss."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    rows = torch.from_numpy(codes.tokens)

    def loss(encoded: Encoded, group: np.ndarray, reduction: str) -> torch.Tensor:
        batch = collate(encoded, group)
        logits = answer_states(decoder, batch) @ head.weight[rows].T
        return functional.cross_entropy(logits.float(), batch.label.long(), reduction=reduction)

    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01, betas=(0.9, 0.98))
    order = np.random.default_rng(config.seed)
    batch_size = config.batch_size * (len(codes.tokens) // codes.size)  # answers
    per_epoch = len(plan_epoch(train, batch_size, np.random.default_rng(0)))
    total, step, best = round(per_epoch * config.epochs), 0, np.inf
    kept = copy.deepcopy(model.state_dict())
    while step < total:
        model.train()
        for group in plan_epoch(train, batch_size, order)[: total - step]:
            for parameters in optimizer.param_groups:
                parameters["lr"] = config.lr * min(1.0, (step + 1) / 100) * (1 - step / total)
            optimizer.zero_grad(set_to_none=True)
            loss(train, group, "mean").backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
        model.eval()
        with torch.no_grad():
            parts = [loss(validation, g, "sum") for g in token_budget_batches(validation, 16384)]
        value = float(torch.stack(parts).sum()) / len(validation.row)
        if progress:
            progress(f"backbone: step {step} of {total}, validation loss {value:.4f}")
        if value < best:
            best, kept = value, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    model.eval()
