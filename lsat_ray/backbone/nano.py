"""The nano backbone: a small LLaMA and its tokenizer, built from the log before the first period."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lsat_ray.backbone.forward import hidden_states
from lsat_ray.config import NanoConfig, PromptConfig
from lsat_ray.data.periods import Periods
from lsat_ray.data.windows import Samples
from lsat_ray.errors import LsatError
from lsat_ray.files import publish_folder
from lsat_ray.prompts.answer import find_answer_tokens
from lsat_ray.prompts.batch import Encoded, collate, plan_epoch
from lsat_ray.prompts.encode import Encoder
from lsat_ray.prompts.tallrec import preamble, prompt_text, sanitise, target_text

LANGUAGE_WEIGHT = 0.1
"""Weight of the next-token loss beside the answer's."""


FORMAT = 2
"""Part of the folder's name; it grows when the same config gives another tokenizer or model."""


def build_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """Train a byte-level BPE on whole prompts and answers; any text can be encoded.

    Called on text it puts `<s>` in front, as LLaMA's tokenizer does. `prompts.encode` asks it not to and adds its own.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def build_model(config: NanoConfig, tokenizer: Any) -> Any:
    """Return a LLaMA of the nano shape with weights from the config's seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(config.seed)
    shape = LlamaConfig(
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        intermediate_size=max(8, config.hidden * 8 // 3 // 8 * 8),
        vocab_size=len(tokenizer),
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        initializer_range=0.8 / config.hidden**0.5,  # the usual 0.02 suits widths near 1,000; at 64 training stalls
        attn_implementation="sdpa",
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(shape)


def place(periods: Periods, config: NanoConfig, prompt: PromptConfig, root: Path) -> Path:
    """Return the folder that `build` builds in: its name is the SHA-256 of data, shape and prompt."""
    key = json.dumps([FORMAT, periods.fingerprint, config.model_dump(), prompt.model_dump()], sort_keys=True)
    return Path(root) / f"nano-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def build(
    periods: Periods,
    config: NanoConfig,
    prompt: PromptConfig,
    root: Path,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Build the nano backbone, or find it built, and return its folder under `root`.

    Tokenizer and weights come from the warm-up samples only: nothing of D_1..D_T is seen.

    Args:
        periods: the cut log; its warm-up is the training data.
        config: shape and training.
        prompt: the prompt that the model learns to answer.
        root: where backbones lie.
        threads: CPU threads of the training.
        progress: is told a line every 50 steps.

    Raises:
        LsatError: when there are no samples before the first period.
    """
    final = place(periods, config, prompt, root)
    if (final / "config.json").is_file():
        return final
    samples = periods.warmup()
    if config.rows:
        samples = samples.take(slice(max(0, len(samples) - config.rows), None))
    if len(samples) == 0:
        raise LsatError("backbone.nano: no samples before the first period; lower data.keep_last")
    tokenizer = build_tokenizer(texts(periods.titles, samples, prompt.item_word), config.vocabulary)
    with ThreadPoolExecutor(1) as beside:  # the library encodes without Python's lock, while transformers is imported
        encoding = beside.submit(Encoder(tokenizer, prompt, periods.titles), samples)
        model = build_model(config, tokenizer)
        encoded = encoding.result()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pretrain(model, tokenizer, encoded, config, progress)
    finally:
        torch.set_num_threads(before)
    with publish_folder(final, "config.json") as draft:
        model.save_pretrained(draft, safe_serialization=True)
        tokenizer.save_pretrained(draft)
    return final


def pretrain(
    model: Any, tokenizer: Any, encoded: Encoded, config: NanoConfig, progress: Callable[[str], None] | None = None
) -> None:
    """Fit all weights on answers and, with a small weight, on the next token of the prompt."""
    ending = preamble("item") + '"a"\n' + target_text("b", "item")
    answers = torch.tensor(find_answer_tokens(tokenizer, ending))
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01, betas=(0.9, 0.98))
    order = np.random.default_rng(config.seed)
    per_epoch = len(plan_epoch(encoded, config.batch_size, np.random.default_rng(0)))
    total = round(per_epoch * config.epochs)
    plan: list[np.ndarray] = []
    model.train()
    for step in range(total):
        plan = plan or plan_epoch(encoded, config.batch_size, order)
        batch = collate(encoded, plan.pop())
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / 20) * (1 - step / total)
        hidden = hidden_states(decoder, batch)
        read = hidden[batch.answer[:, 0], batch.answer[:, 1]]
        answer = functional.cross_entropy(read @ head.weight[answers].T, batch.label.long())
        loss = answer + LANGUAGE_WEIGHT * _next_token(hidden, batch.tokens, head, tokenizer.pad_token_id)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if progress and (step + 1) % 50 == 0:
            progress(f"nano backbone: step {step + 1} of {total}, answer loss {answer.item():.4f}")
    model.eval()


def _next_token(hidden: torch.Tensor, tokens: torch.Tensor, head: Any, pad: int) -> torch.Tensor:
    """Return the mean loss over a random eighth of the next tokens; the language term needs no more."""
    after = tokens[:, 1:]
    real = (after != pad).nonzero()
    chosen = real[torch.randperm(len(real))[: max(1, len(real) // 8)]]
    logits = head(hidden[chosen[:, 0], chosen[:, 1]])
    return functional.cross_entropy(logits.float(), after[chosen[:, 0], chosen[:, 1]])


def texts(titles: tuple[str, ...], samples: Samples, word: str) -> list[str]:
    """Return up to 2,000 prompts with their answers, evenly spread: what the tokenizer learns from."""
    clean = [sanitise(t) for t in titles]
    chosen = np.linspace(0, len(samples) - 1, min(len(samples), 2000)).astype(int)
    return [
        prompt_text(clean, samples.history_item[i], samples.history_label[i], int(samples.item[i]), word)
        + ("Yes." if samples.label[i] else "No.")
        for i in chosen
    ]
