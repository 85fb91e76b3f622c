"""The lean walk without padding: the tokens of all prompts in one row, each prompt seeing the prefix and itself.

For batches with one answer a prompt and plain causal attention (the exact layout). Whatever works token by token sees
real tokens only; attention is block-diagonal, by torch's variable-length flash kernel on a GPU in half precision,
prompt by prompt elsewhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lsat_ray.backbone.dropout import token_keys
from lsat_ray.backbone.lean import feed, heads, linear, some
from lsat_ray.backbone.pointwise import norm
from lsat_ray.prompts.batch import Batch


class _Plan(NamedTuple):
    """What all layers share. T = P + R tokens: the prefix, then the real tokens of every prompt up to its answer."""

    cos: torch.Tensor
    """[T, 1, d / 2]."""
    sin: torch.Tensor
    """[T, 1, d / 2]."""
    seen: torch.Tensor
    """int64 [K], the tokens that are keys, block after block: the prefix's own, then prefix and prompt for each."""
    query: torch.Tensor
    """int32 [1 + B + 1], where each block's queries begin; block 0 is the prefix."""
    key: torch.Tensor
    """int32 [1 + B + 1], where each block's keys begin in `seen`."""
    answer: torch.Tensor
    """int64 [B], the token at which each prompt is answered: its last."""
    keys: torch.Tensor | None
    """int64 [T], what dropout knows the tokens by; None where nothing is dropped."""


def fits(batch: Batch) -> bool:
    """Return whether the batch is plain causal with one answer a row, in the order of the rows."""
    row = batch.answer[:, 0]
    return batch.mask is None and len(row) == len(batch.tokens) and bool((row[1:] > row[:-1]).all())


def answer_states(decoder: Any, batch: Batch, checkpointing: bool = False) -> torch.Tensor:
    """Return the last hidden state at each prompt's answer, [B, H].

    Args:
        decoder: one that `lean.supports` accepts.
        batch: one that `fits`.
        checkpointing: recompute each layer in the backward pass.
    """
    length = batch.answer[:, 1] + 1
    real = torch.arange(batch.tokens.shape[1], device=length.device) < length[:, None]
    x = decoder.embed_tokens(torch.cat([batch.prefix, batch.tokens[real]]))
    plan = _plan(decoder, batch, x, length, real)
    recompute = checkpointing and torch.is_grad_enabled()
    for layer in decoder.layers[:-1]:
        x = checkpoint(_layer, layer, x, plan, use_reentrant=False) if recompute else _layer(layer, x, plan)
    last = decoder.layers[-1]
    x = checkpoint(_last_layer, last, x, plan, use_reentrant=False) if recompute else _last_layer(last, x, plan)
    return norm(decoder.norm, x)


def _plan(decoder: Any, batch: Batch, x: torch.Tensor, length: torch.Tensor, real: torch.Tensor) -> _Plan:
    prefix, device = len(batch.prefix), x.device
    before = torch.arange(prefix, device=device)
    position = torch.cat([before, batch.position[real]])
    cos, sin = (t[0, :, None, : t.shape[-1] // 2] for t in decoder.rotary_emb(x[None], position[None]))
    end = prefix + length.cumsum(0)
    # Block b's keys are the prefix, then its own tokens: an arange that jumps back to 0 and on to the prompt's start.
    keys = torch.cat([length.new_tensor([prefix]), length + prefix])
    begin = keys.cumsum(0) - keys
    block = torch.arange(len(keys), device=device).repeat_interleave(keys)
    place = torch.arange(len(block), device=device) - begin[block]
    start = torch.cat([length.new_zeros(1), end - length - prefix])  # added to a place past the prefix
    seen = torch.where(place < prefix, place, place + start[block])
    queries = torch.cat([length.new_zeros(1), length.new_tensor([prefix]), end])
    own = token_keys(batch)
    if own is not None:
        own = torch.cat([own[:prefix], own[prefix:].view(real.shape)[real]])
    return _Plan(cos, sin, seen, queries.int(), torch.cat([begin, keys.sum()[None]]).int(), end - 1, own)


def _layer(layer: Any, x: torch.Tensor, plan: _Plan) -> torch.Tensor:
    attention = layer.self_attn
    query, key, value = heads(attention, "qkv", norm(layer.input_layernorm, x), plan.cos, plan.sin, plan.keys)
    mixed = _attend(attention, query, key[plan.seen], value[plan.seen], plan.query, plan.key)
    return feed(layer, x + linear(attention.o_proj, mixed.flatten(1), plan.keys), plan.keys)


def _last_layer(layer: Any, x: torch.Tensor, plan: _Plan) -> torch.Tensor:
    attention, normed, at = layer.self_attn, norm(layer.input_layernorm, x), plan.answer
    keys = some(plan.keys, at)
    key, value = heads(attention, "kv", normed, plan.cos, plan.sin, plan.keys)
    query = heads(attention, "q", normed[at], plan.cos[at], plan.sin[at], keys)[0]
    one = torch.arange(len(at) + 1, device=x.device, dtype=torch.int32)
    one = torch.cat([one[:1], one])  # the prefix asks nothing
    mixed = _attend(attention, query, key[plan.seen], value[plan.seen], one, plan.key)
    return feed(layer, x[at] + linear(attention.o_proj, mixed.flatten(1), keys), keys)


def _attend(
    attention: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    begin: torch.Tensor,
    begin_key: torch.Tensor,
) -> torch.Tensor:
    """Return [queries, heads, d]: block by block causal, the last query of a block seeing all of its keys."""
    grouped = query.shape[1] != key.shape[1]
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        longest, longest_key = int(begin.diff().max()), int(begin_key.diff().max())
        from torch.nn.attention.varlen import varlen_attn  # a second, which a CPU need not pay

        out = varlen_attn(
            query, key, value, begin, begin_key, longest, longest_key,
            scale=attention.scaling, window_size=(-1, 0), enable_gqa=grouped,
        )  # fmt: skip
        assert isinstance(out, torch.Tensor)
        return out
    sizes, sizes_key = begin.diff().tolist(), begin_key.diff().tolist()
    blocks = []
    for q, k, v in zip(query.split(sizes), key.split(sizes_key), value.split(sizes_key), strict=True):
        if not len(q):
            continue
        mask = None
        if 1 < len(q) < len(k):
            mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        causal = q.shape[2] == k.shape[2] > 1
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=attention.scaling, enable_gqa=grouped
        )
        blocks.append(mixed[0].transpose(0, 1))
    return torch.cat(blocks)
