"""One forward pass over a batch, its shared prefix computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lsat_ray.backbone import lean, packed
from lsat_ray.backbone.dropout import token_keys, use
from lsat_ray.backbone.states import PrefixStates
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Batch

PIECE = 1024
"""Tokens whose logits over the vocabulary are held at once."""


def answer_states(
    decoder: Any,
    batch: Batch,
    checkpointing: bool = False,
    packing: bool = False,
    copies: int = 1,
    states: PrefixStates | None = None,
) -> torch.Tensor:
    """Return the last hidden state at each target's answer, [C N, H]: by hand where that is known to be the same.

    Args:
        decoder: of a causal LM.
        batch: N answers.
        checkpointing: recompute each layer in the backward pass.
        packing: compute no padding where the layout allows it.
        copies: C, how often the batch goes through; more than 1 asks for `lean.supports`.
        states: what is known of the prefix, and where it is kept; without `lean.supports` nothing is.
    """
    if lean.supports(decoder):
        if packing and copies == 1 and states is None and packed.fits(batch):
            return packed.answer_states(decoder, batch, checkpointing)
        return lean.answer_states(decoder, batch, checkpointing, copies, states)
    hidden = hidden_states(decoder, batch, share_prefix=not checkpointing)
    return hidden[batch.answer[:, 0], batch.answer[:, 1]]


def hidden_states(decoder: Any, batch: Batch, share_prefix: bool = True) -> torch.Tensor:
    """Return the last hidden states of the batch's own tokens, [B, L, H].

    The prefix is run once, its keys and values are repeated along the batch, so gradients through it add up as if each
    row had computed its own. Without `share_prefix` (activation checkpointing has no cache) every row computes it.
    """
    shared, keys = len(batch.prefix), token_keys(batch)
    if shared and share_prefix:
        if keys is not None:
            use(decoder, keys[:shared])
        cache = decoder(input_ids=batch.prefix[None], use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(batch.tokens))
        if keys is not None:
            use(decoder, keys[shared:])
        output = decoder(
            input_ids=batch.tokens,
            position_ids=batch.position,
            attention_mask=batch.mask,
            past_key_values=cache,
            use_cache=True,
        )
        return output.last_hidden_state
    rows, width = batch.tokens.shape
    device = batch.tokens.device
    if keys is not None:
        use(decoder, torch.cat([keys[:shared].expand(rows, shared), keys[shared:].view(rows, width)], dim=1).flatten())
    tokens = torch.cat([batch.prefix.expand(rows, shared), batch.tokens], dim=1)
    position = torch.cat([torch.arange(shared, device=device).expand(rows, shared), batch.position], dim=1)
    mask = None
    if batch.mask is not None:
        causal = torch.ones(shared, shared + width, dtype=torch.bool, device=device).tril()
        mask = torch.cat([causal.expand(rows, 1, shared, shared + width), batch.mask], dim=2)
    output = decoder(input_ids=tokens, position_ids=position, attention_mask=mask, use_cache=False)
    return output.last_hidden_state[:, shared:]


def text_loss(decoder: Any, output: Any, batch: Batch, answers: tuple[int, int]) -> torch.Tensor:
    """Return the mean cross-entropy over a prompt's tokens and the first one of its answer, float32 [N], by prompt.

    The first token of a prompt is given, every later one and the answer are predicted from what stands before them.

    Args:
        decoder: of a causal LM.
        output: its output embedding.
        batch: one prompt a row, without a shared prefix (`prompts.batch.apart`).
        answers: tokens of (No, Yes).

    Raises:
        LsatError: when the batch has another layout, or ZeRO-3 has split the output embedding.
    """
    rows, width = batch.tokens.shape
    if len(batch.prefix) or batch.mask is not None or len(batch.answer) != rows:
        raise LsatError("recipe.loss: language needs one whole prompt a row; set prompt.layout: exact")
    if hasattr(output.weight, "ds_id"):
        raise LsatError("recipe.loss: language is not made for ZeRO stage 3; set engine.zero to 0, 1 or 2")
    hidden = hidden_states(decoder, batch, share_prefix=False)
    last = batch.answer[:, 1:]  # [N, 1], in the order of the rows
    column = torch.arange(width, device=last.device)
    target = torch.cat([batch.tokens[:, 1:], batch.tokens[:, :1]], dim=1)
    answer = torch.tensor(answers, device=last.device)[batch.label.long()]
    target = torch.where(column == last, answer[:, None], target)
    real = column <= last

    def piece(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(output(states).float(), wanted, reduction="none")

    parts = zip(hidden[real].split(PIECE), target[real].split(PIECE), strict=True)
    each = torch.cat([checkpoint(piece, states, wanted, use_reentrant=False) for states, wanted in parts])
    total = each.new_zeros(rows).index_add(0, real.nonzero()[:, 0], each)
    return total / real.sum(1)
