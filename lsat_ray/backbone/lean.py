"""The LLaMA family's decoder, walked by hand: the same maths in fewer passes, and only what the answers need.

What it leaves out beside `transformers`' own forward: everything of the last layer but keys and values, away from the
answers; the temporary tensors of the norms, of the rotation and of PEFT's LoRA (on a CPU these cost as much as the
matrix products); and the prefix of every row but one. Modules are called, not bypassed, wherever something else than
plain frozen float weights stands behind them (ZeRO-3 shards, quantised layers, dropout).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lsat_ray.backbone.attention import attend, unseen
from lsat_ray.backbone.dropout import token_keys, use
from lsat_ray.backbone.gated import mix, unmix
from lsat_ray.backbone.pointwise import norm, rotate
from lsat_ray.backbone.reordered import Reordered, reordered
from lsat_ray.backbone.states import PrefixStates
from lsat_ray.prompts.batch import Batch

_Parts = tuple[torch.Tensor, torch.Tensor]

FAMILY = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")


class _Plan(NamedTuple):
    """What all layers of one pass share. T = C (P - K + B L) tokens: for each copy what is unknown of the prefix, then
    every row."""

    copies: int
    """C."""
    prefix: int
    """P."""
    known: int
    """K, first tokens of the prefix whose keys and values are at hand."""
    rows: int
    """B."""
    width: int
    """L."""
    cos: torch.Tensor
    """[T, 1, d / 2]."""
    sin: torch.Tensor
    """[T, 1, d / 2]."""
    mask: torch.Tensor
    """float [C B or 1, 1, L, P + L + G], 0 where query sees key, minus infinity elsewhere."""
    ahead: torch.Tensor | None
    """float [1, 1, P - K, P] likewise, of the prefix's own queries; None for plain causal (K = 0)."""
    gap: torch.Tensor
    """[1, 1, G, d], keys and values that no query sees, so that `attend` has a number of keys that it is fast with."""
    keys: torch.Tensor | None
    """int64 [T], what dropout knows the tokens by; None where nothing is dropped."""


def supports(decoder: Any) -> bool:
    """Return whether this walk computes what the decoder's own forward does: its family, SDPA, full attention."""
    config = decoder.config
    kinds = getattr(config, "layer_types", None) or []
    if type(decoder).__name__ not in FAMILY or config._attn_implementation != "sdpa":
        return False
    if type(decoder).__name__ == "MistralModel" and getattr(config, "sliding_window", None) is not None:
        return False
    return all(kind == "full_attention" for kind in kinds)


def answer_states(
    decoder: Any, batch: Batch, checkpointing: bool = False, copies: int = 1, states: PrefixStates | None = None
) -> torch.Tensor:
    """Return the last hidden state at each target's answer, [C N, H].

    Args:
        decoder: one that `supports` accepts.
        batch: N answers in B rows.
        checkpointing: recompute each layer in the backward pass.
        copies: C, how often the batch goes through, copy after copy; each copy has an adapter of its own
            (`AdaptedBackbone.several`). Frozen weights are read once for all.
        states: of the first tokens of this prefix, under these adapters; afterwards of the whole prefix. For passes
            without gradients.
    """
    known = states.length if states else 0
    tokens = torch.cat([batch.prefix[known:], batch.tokens.flatten()])
    x = decoder.embed_tokens(tokens)
    plan = _plan(decoder, batch, x, copies, known)
    if copies > 1:
        x = x.repeat(copies, 1)
    recompute = checkpointing and torch.is_grad_enabled()
    for number, layer in enumerate(decoder.layers[:-1]):
        own = (layer, x, plan, number, states)
        x = checkpoint(_layer, *own, use_reentrant=False) if recompute else _layer(*own)
    args = (decoder.layers[-1], x, plan, len(decoder.layers) - 1, states, *_slots(batch, plan))
    x = checkpoint(_last_layer, *args, use_reentrant=False) if recompute else _last_layer(*args)
    return norm(decoder.norm, x)


def _plan(decoder: Any, batch: Batch, x: torch.Tensor, copies: int, known: int) -> _Plan:
    prefix, (rows, width) = len(batch.prefix), batch.tokens.shape
    device = x.device
    position = torch.cat([torch.arange(known, prefix, device=device), batch.position.flatten()])
    cos, sin = (t[0, :, None, : t.shape[-1] // 2] for t in decoder.rotary_emb(x[None], position[None]))
    if batch.mask is None:
        column = torch.arange(width, device=device)
        seen = column[None, :] <= column[:, None]
        seen = torch.cat([seen.new_ones(width, prefix), seen], dim=1)[None, None]
    else:
        seen = batch.mask
    gap = x.new_zeros(1, 1, unseen(prefix + width, x), 2 * cos.shape[-1])
    mask, keys = functional.pad(_additive(seen, x.dtype), (0, gap.shape[2]), value=float("-inf")), token_keys(batch)
    ahead = None
    if 0 < known < prefix:
        column = torch.arange(prefix, device=device)
        ahead = _additive((column[None, :] <= column[known:, None])[None, None], x.dtype)
    if copies > 1:
        cos, sin = cos.repeat(copies, 1, 1), sin.repeat(copies, 1, 1)
        mask = mask if len(mask) == 1 else mask.repeat(copies, 1, 1, 1)
        keys = None if keys is None else keys.repeat(copies)
    return _Plan(copies, prefix, known, rows, width, cos, sin, mask, ahead, gap, keys)


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def _slots(batch: Batch, plan: _Plan) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the token of every query slot [C B, A], its mask rows [C B, 1, A, P + L + G], each answer's slot [C N]."""
    row, column = batch.answer[:, 0], batch.answer[:, 1]
    count = torch.bincount(row, minlength=plan.rows)
    number = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    size = int(count.max())
    slot = row * size + number
    place = torch.zeros(plan.rows * size, dtype=torch.long, device=row.device)  # an empty slot asks at place 0
    place[slot] = column
    place = place.view(plan.rows, size).repeat(plan.copies, 1)
    mask = plan.mask.expand(len(place), -1, -1, -1)[:, 0]
    mask = mask.gather(1, place[:, :, None].expand(-1, -1, mask.shape[2]))[:, None]
    copy = torch.arange(plan.copies, device=row.device)[:, None]
    fresh = plan.prefix - plan.known
    start = fresh + plan.width * torch.arange(plan.rows, device=row.device)
    start = start + copy * (fresh + plan.rows * plan.width)
    return start.view(-1, 1) + place, mask, (slot + copy * plan.rows * size).flatten()


def _layer(layer: Any, x: torch.Tensor, plan: _Plan, number: int, states: PrefixStates | None) -> torch.Tensor:
    attention = layer.self_attn
    query, key, value = heads(attention, "qkv", norm(layer.input_layernorm, x), plan.cos, plan.sin, plan.keys)
    ahead, own = _parted(query, plan)
    keys, values = _whole_prefix(key, value, plan, number, states)
    mixed = attend(_rows(own, plan), *_joined(keys, values, plan), plan.mask, attention.scaling)
    mixed = mixed.transpose(1, 2).reshape(plan.copies, -1, *query.shape[1:])
    if plan.known < plan.prefix:
        alone = [t.transpose(1, 2) for t in (ahead, keys[0], values[0])]
        first = attend(alone[0], alone[1], alone[2], plan.ahead, attention.scaling)
        mixed = torch.cat([first.transpose(1, 2), mixed], dim=1)
    return feed(layer, x + linear(attention.o_proj, mixed.reshape(len(x), -1), plan.keys), plan.keys)


def _last_layer(
    layer: Any,
    x: torch.Tensor,
    plan: _Plan,
    number: int,
    states: PrefixStates | None,
    place: torch.Tensor,
    mask: torch.Tensor,
    slot: torch.Tensor,
) -> torch.Tensor:
    attention, normed = layer.self_attn, norm(layer.input_layernorm, x)
    found = heads(attention, "kv", normed, plan.cos, plan.sin, plan.keys)
    key, value = _whole_prefix(found[0], found[1], plan, number, states)
    at = place.flatten()
    query = heads(attention, "q", normed[at], plan.cos[at], plan.sin[at], some(plan.keys, at))[0]
    query = query.view(*place.shape, *query.shape[1:]).transpose(1, 2)
    mixed = attend(query, *_joined(key, value, plan), mask, attention.scaling)
    mixed = mixed.transpose(1, 2).flatten(2).flatten(0, 1)
    at = at[slot]
    keys = some(plan.keys, at)
    return feed(layer, x[at] + linear(attention.o_proj, mixed[slot], keys), keys)


def some(keys: torch.Tensor | None, at: torch.Tensor) -> torch.Tensor | None:
    """Return the keys of some tokens, where there are keys."""
    return None if keys is None else keys[at]


def feed(layer: Any, x: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
    """Return the stream after the layer's gated MLP, its residual included."""
    mlp = layer.mlp
    normed = norm(layer.post_attention_layernorm, x)
    gate, up = linears([mlp.gate_proj, mlp.up_proj], normed, keys)
    return x + linear(mlp.down_proj, mlp.act_fn(gate) * up, keys)


def heads(
    attention: Any, which: str, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, keys: torch.Tensor | None
) -> list[torch.Tensor]:
    """Return those of queries, keys and values that `which` names ("qkv"), [T, heads, d], normed and rotated."""
    found = []
    modules = [getattr(attention, f"{n}_proj") for n in which]
    for name, flat in zip(which, linears(modules, x, keys), strict=True):
        one = flat.view(len(x), -1, attention.head_dim)
        own = getattr(attention, f"{name}_norm", None)
        one = one if own is None else norm(own, one)
        found.append(one if name == "v" else rotate(one, cos, sin))
    return found


def _parted(x: torch.Tensor, plan: _Plan) -> _Parts:
    """Part [T, ...] into [C, P - K, ...] and [C, B L, ...]; two slices would fill zeros in the backward pass."""
    sizes = [plan.prefix - plan.known, plan.rows * plan.width]
    before, own = x.view(plan.copies, -1, *x.shape[1:]).split(sizes, dim=1)
    return before, own


def _whole_prefix(
    key: torch.Tensor, value: torch.Tensor, plan: _Plan, number: int, states: PrefixStates | None
) -> tuple[_Parts, _Parts]:
    """Part a layer's keys and values, and put what is known of the prefix before what is new: [C, P, heads, d]."""
    keys, values = _parted(key, plan), _parted(value, plan)
    if states is None or not plan.prefix:
        return keys, values
    before = states.extended(number, (keys[0], values[0]))
    return (before[0], keys[1]), (before[1], values[1])


def _rows(x: torch.Tensor, plan: _Plan) -> torch.Tensor:
    """Return [C B, heads, L, d] of [C, B L, heads, d]."""
    return x.reshape(-1, plan.width, *x.shape[2:]).transpose(1, 2)


def _joined(key: _Parts, value: _Parts, plan: _Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values [C B, heads, P + L + G, d]: the prefix's stand before each row's own, the gap behind."""
    both = []
    for before, own in (key, value):
        rows = own.view(plan.copies, plan.rows, plan.width, *own.shape[2:]).transpose(2, 3)
        shared = before.transpose(1, 2)[:, None].expand(-1, plan.rows, -1, -1, -1)
        gap = plan.gap.expand(*rows.shape[:3], -1, -1)
        both.append(torch.cat([shared, rows, gap], dim=3).flatten(0, 1))
    return both[0], both[1]


def linears(modules: Sequence[Any], x: torch.Tensor, keys: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Return `[m(x) for m in modules]`, x [T, in], in fewer passes where all are plain, with LoRA or without.

    Args:
        modules: linear layers, plain or with LoRA.
        x: [T, in].
        keys: int64 [T] of `dropout.token_keys`.
    """
    kinds = [_kind(m) for m in modules]
    if "other" in kinds:
        return [_called(m, x, keys) for m in modules]
    weights: list[torch.Tensor | None] = []
    how = []
    for module, kind in zip(modules, kinds, strict=True):
        base, a, b, gate, scale, factors = module, None, None, None, 0.0, False
        if kind == "lora":
            base, name = module.base_layer, module.active_adapters[0]
            if not module.disable_adapters:
                a, b, scale = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
                if (mixing := getattr(module.lora_A[name], "mixing", None)) is not None:
                    gate, factors = mixing.weights(), mixing.factors
        weights += [base.weight, base.bias, a, b, gate]
        how.append((scale, factors, reordered(base)))
    return list(_Linears.apply(x, how, *weights))


def linear(module: Any, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
    """Return `module(x)`, x [T, in]."""
    return linears([module], x, keys)[0]


def _called(module: Any, x: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
    if keys is not None:
        use(module, keys)
    return module(x)  # type: ignore[no-any-return]


class _Linears(torch.autograd.Function):
    """`x (W + s B A)' + c` for several frozen W; x gets one gradient, added up in place.

    In one precision LoRA joins its weight. There a float32 update of a bfloat16 weight would be rounded away while it
    is small, and with a gate every sample has another: these have products of their own, in the weight's type, which
    only A and B are cast to.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, how: list[tuple[float, bool, Reordered | None]], *weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        ctx.how = how
        outputs, lows = [], []
        for number, (s, factors, copies) in enumerate(how):
            w, c, a, b, gate = weights[5 * number : 5 * number + 5]
            low = None
            if w is not None and a is not None and b is not None and _apart(w, a, gate):
                low = functional.linear(x, a.to(x.dtype))
                mixed = low if gate is None else mix(low, gate, factors)
                outputs.append(_product(x, w, c, copies).addmm_(mixed, b.to(x.dtype).t(), alpha=s))
            else:
                outputs.append(_product(x, _whole(w, a, b, s), c, copies if a is None else None))
            lows.append(low)
        adapted = any(a is not None for a in weights[2::5])
        ctx.save_for_backward(x if adapted else None, *weights, *lows)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        count = len(grads)
        weights, lows = weights[: 5 * count], weights[5 * count :]
        wanted = ctx.needs_input_grad[2:]
        total: torch.Tensor | None = None
        found: list[torch.Tensor | None] = [None] * len(weights)
        for number, (grad, (scale, factors, copies)) in enumerate(zip(grads, ctx.how, strict=True)):
            at = 5 * number
            w, _, a, b, gate = weights[at : at + 5]
            apart, low = _apart(w, a, gate), lows[number]
            if ctx.needs_input_grad[0]:
                if copies and (apart or a is None):
                    total = copies.backward(grad, total)
                else:
                    whole = w if apart else _whole(w, a, b, scale)
                    total = grad @ whole if total is None else total.addmm_(grad, whole)
            if a is None:
                continue
            if apart or wanted[at + 2]:
                behind = grad @ (scale * b).to(grad.dtype)
                if gate is not None:
                    behind, found[at + 4] = unmix(behind, low, gate, factors)
                if apart and total is not None:
                    total.addmm_(behind, a.to(grad.dtype))
                if wanted[at + 2]:
                    found[at + 2] = (behind.t() @ x).to(a.dtype)
            if wanted[at + 3]:
                if low is None:
                    found[at + 3] = grad.t() @ functional.linear(x, scale * a)
                else:
                    mixed = low if gate is None else mix(low, gate, factors)
                    found[at + 3] = (grad.t() @ mixed).to(b.dtype).mul_(scale)
        return total, None, *found


def _product(x: torch.Tensor, w: torch.Tensor, c: torch.Tensor | None, copies: Reordered | None) -> torch.Tensor:
    return copies.forward(x, c) if copies else functional.linear(x, w, c)


def _apart(weight: torch.Tensor | None, a: torch.Tensor | None, gate: torch.Tensor | None) -> bool:
    """Return whether LoRA cannot join its weight: it is gated, or kept in another precision."""
    return gate is not None or (weight is not None and a is not None and a.dtype != weight.dtype)


def _whole(weight: torch.Tensor | None, a: torch.Tensor | None, b: torch.Tensor | None, scale: float) -> torch.Tensor:
    assert weight is not None
    return weight if a is None or b is None else torch.addmm(weight, b, a, alpha=scale)


def _kind(module: Any) -> Literal["linear", "lora", "other"]:
    """Return whether this is a plain frozen linear, one with plain LoRA, or neither."""
    base = getattr(module, "base_layer", None)
    if base is None:
        return "linear" if _plain(module) else "other"
    if not _plain(base) or module.merged or module._forward_hooks or module._forward_pre_hooks:
        return "other"
    names = module.active_adapters
    if len(names) != 1 or names[0] not in module.lora_A or module.lora_variant.get(names[0]):
        return "other"
    a, b, drop = (getattr(module, part)[names[0]] for part in ("lora_A", "lora_B", "lora_dropout"))
    if drop.training and not isinstance(drop, nn.Identity):
        return "other"
    hooks = len(a._forward_hooks) - hasattr(a, "mixing")  # the gate's own is for the decoder's own forward
    if b.bias is not None or hasattr(a.weight, "ds_id") or hooks or a._forward_pre_hooks:
        return "other"  # somebody watches it
    return "lora"


def _plain(module: Any) -> bool:
    if type(module) is not nn.Linear or module.weight.requires_grad or hasattr(module.weight, "ds_id"):
        return False
    return not (module._forward_hooks or module._forward_pre_hooks)
