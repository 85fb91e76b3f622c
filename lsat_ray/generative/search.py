"""Beam search that can only find real items, and the exhaustive scoring that it must agree with.

A candidate's score is the log of its probability under the softmax over all codes, summed over its codes; with several
models it is the log of the weighted mean of their probabilities (an ensemble of outputs, LSAT equation 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

from lsat_ray.adapters.lora import Adapter
from lsat_ray.generative.encode import Prompts
from lsat_ray.generative.model import GenerativeModel
from lsat_ray.generative.trie import Trie

BATCH_TOKENS = 32768
"""Most tokens, padding and beams included, that a batch of histories may hold."""


class Found(NamedTuple):
    """What a search returned."""

    leaf: np.ndarray
    """int64 [N, W], semantic IDs as leaves of the trie, best first; -1 where there are fewer."""
    score: np.ndarray
    """float32 [N, W], log-probabilities; minus infinity where there are fewer."""
    certain: np.ndarray
    """int64 [N], how many of the first results no pruned beam can have belonged among: they are the true ones."""


@torch.no_grad()
def beam_search(
    model: GenerativeModel,
    prompts: Prompts,
    trie: Trie,
    width: int = 10,
    adapters: Sequence[Adapter] = (),
    weights: Sequence[float] = (1.0,),
    batch_tokens: int = BATCH_TOKENS,
) -> Found:
    """Return the best items after each history.

    The keys and values of a history are computed once and never copied: the beams of a history are one more row of
    tokens behind it, each of which sees the history, its own ancestors and itself. A completion is never likelier than
    its prefix, so the best score that was pruned bounds what was lost (`Found.certain`).

    Args:
        model: wears what is to be searched with, where `adapters` is empty.
        prompts: histories.
        trie: of the real items.
        width: beams, and results.
        adapters: models whose probabilities are mixed; put on in turn.
        weights: of the adapters, summing to 1.
        batch_tokens: most tokens in a batch.
    """
    model.eval()
    wearers: list[Callable[[], Any]] = [lambda: None]
    if adapters:
        wearers = [lambda a=a: model.wear(a) for a in adapters]  # type: ignore[misc]
    mix = torch.tensor(list(weights), device=model.device).log()
    n = len(prompts.length)
    leaf, score = np.full((n, width), -1, np.int64), np.full((n, width), -np.inf, np.float32)
    certain = np.zeros(n, np.int64)
    for group in _batches(prompts.length, trie.levels * width, batch_tokens):
        walks = [_Walk(model, wear, prompts, group) for wear in wearers]
        found = _search(walks, mix, trie, width, model.codes.size)
        leaf[group], score[group], certain[group] = (t.cpu().numpy() for t in found)
    return Found(leaf, score, certain)


def _search(
    walks: list[_Walk], mix: torch.Tensor, trie: Trie, width: int, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, device = len(walks[0].length), mix.device
    node = torch.zeros(rows, 1, dtype=torch.long, device=device)
    own = torch.zeros(len(walks), rows, 1, device=device)  # each model's log-probability of each beam
    total = torch.zeros(rows, 1, device=device)
    bound = torch.full((rows,), -torch.inf, device=device)
    code = torch.empty(0)
    parent = torch.empty(0)
    for level in range(trie.levels):
        logp = [walk.start() if level == 0 else walk.go(code, parent, level) for walk in walks]
        below = trie.children(level, node)
        at = (level * size + below.code).flatten(2)
        joint = torch.stack([(o[..., None] + p.gather(2, at)) for o, p in zip(own, logp, strict=True)])
        joint = joint.masked_fill(~below.real | torch.isneginf(total)[..., None], -torch.inf).flatten(2)
        mixed = torch.logsumexp(joint + mix[:, None, None], dim=0)
        kept = min(width, mixed.shape[1])
        total, best = mixed.topk(min(kept + 1, mixed.shape[1]), dim=1)
        if total.shape[1] > kept and level < trie.levels - 1:
            bound = torch.maximum(bound, total[:, kept])
        total, best = total[:, :kept], best[:, :kept]
        node, code = (t.flatten(1).gather(1, best) for t in (below.node, at))
        parent = best // at.shape[2]
        own = joint.gather(2, best.expand(len(walks), -1, -1))
    real = ~torch.isneginf(total)
    certain = (real & (total >= bound[:, None])).long().cumprod(1).sum(1)
    gap = width - total.shape[1]
    leaf = torch.nn.functional.pad(node.masked_fill(~real, -1), (0, gap), value=-1)
    return leaf, torch.nn.functional.pad(total, (0, gap), value=-torch.inf), certain


class _Walk:
    """One model's keys and values over some histories and the beams that grow behind them."""

    def __init__(self, model: GenerativeModel, wear: Callable[[], Any], prompts: Prompts, group: np.ndarray) -> None:
        self.model, self.wear, self.cache = model, wear, DynamicCache()
        self.length = torch.from_numpy(prompts.length[group]).to(model.device)
        self.tokens = torch.from_numpy(prompts.tokens[group][:, : int(self.length.max())]).to(model.device)
        self.names = torch.from_numpy(model.codes.tokens).to(model.device)
        columns = torch.arange(self.tokens.shape[1], device=model.device)
        self.seen = (columns < self.length[:, None])[:, None]

    def start(self) -> torch.Tensor:
        """Run the histories; return the log-probabilities of the first code, [B, 1, C]."""
        width = self.tokens.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=self.tokens.device).tril()
        position = torch.arange(width, device=self.tokens.device).expand_as(self.tokens)
        hidden = self._run(self.tokens, position, causal[None].expand(len(self.tokens), -1, -1))
        return self._logp(hidden[torch.arange(len(hidden), device=hidden.device), self.length - 1][:, None])

    def go(self, code: torch.Tensor, parent: torch.Tensor, level: int) -> torch.Tensor:
        """Grow beams by a code; return the log-probabilities of the next, [B, W, C].

        Args:
            code: int64 [B, W], classes.
            parent: int64 [B, W], the beam of the level before that each comes from.
            level: codes that a beam has now.
        """
        width = code.shape[1]
        seen = self.seen.gather(1, parent[..., None].expand(-1, -1, self.seen.shape[2]))
        itself = torch.eye(width, dtype=torch.bool, device=code.device).expand(len(code), -1, -1)
        self.seen = torch.cat([seen, itself], dim=2)
        position = (self.length + level - 1)[:, None].expand_as(code)
        return self._logp(self._run(self.names[code], position, self.seen))

    def _run(self, tokens: torch.Tensor, position: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        self.wear()
        return _forward(self.model, tokens, position, seen, self.cache)

    def _logp(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(self.model.logits(hidden), dim=-1)


@torch.no_grad()
def score_items(
    model: GenerativeModel, prompts: Prompts, ids: np.ndarray, batch_tokens: int = BATCH_TOKENS
) -> np.ndarray:
    """Return the log-probability of every item after every history, float32 [N, I]: no trie, no pruning.

    Args:
        model: wears what is to be scored with.
        prompts: histories.
        ids: int [I, M], codes.
        batch_tokens: most tokens, keys of the history included, in a forward pass.
    """
    model.eval()
    classes = torch.from_numpy(model.codes.classes(ids)).to(model.device)
    names = torch.from_numpy(model.codes.tokens).to(model.device)
    levels = classes.shape[1]
    out = np.empty((len(prompts.length), len(ids)), dtype=np.float32)
    for row in range(len(prompts.length)):
        walk = _Walk(model, lambda: None, prompts, np.array([row]))
        first = walk.start()[0, 0]
        length = int(walk.length)
        step = max(1, batch_tokens // (length + levels))
        for begin in range(0, len(ids), step):
            part = classes[begin : begin + step]
            score = first[part[:, 0]]
            if levels > 1:
                cache = _repeated(walk.cache, len(part))
                place = torch.arange(levels - 1, device=part.device)
                seen = torch.ones(levels - 1, length + levels - 1, dtype=torch.bool, device=part.device).tril(length)
                tokens, seen = names[part[:, :-1]], seen.expand(len(part), -1, -1)
                hidden = _forward(model, tokens, (length + place).expand_as(tokens), seen, cache)
                logp = torch.log_softmax(model.logits(hidden), dim=-1)
                score = score + logp.gather(2, part[:, 1:, None])[..., 0].sum(1)
            out[row, begin : begin + step] = score.cpu().numpy()
    return out


def _forward(
    model: GenerativeModel, tokens: torch.Tensor, position: torch.Tensor, seen: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """Return the last hidden states [B, L, H]; `seen` is bool [B, L, keys]. A query that sees nothing sees all."""
    decoder = model._decoder[0]
    kind = next(decoder.parameters()).dtype
    mask = torch.zeros(seen.shape, dtype=kind, device=seen.device)
    mask = mask.masked_fill_(~seen, torch.finfo(kind).min)[:, None]
    output = decoder(
        input_ids=tokens, position_ids=position, attention_mask=mask, past_key_values=cache, use_cache=True
    )
    return output.last_hidden_state


def _repeated(cache: DynamicCache, times: int) -> DynamicCache:
    """Return a copy of a cache of one row, for so many rows."""
    copy = DynamicCache()
    for number, layer in enumerate(cache.layers):
        keys, values = (t.expand(times, -1, -1, -1) for t in (layer.keys, layer.values))
        copy.update(keys, values, number)
    return copy


def _batches(length: np.ndarray, beams: int, budget: int) -> list[np.ndarray]:
    """Return rows in batches of similar length whose padded tokens, beams included, stay within the budget."""
    order = np.argsort(-length, kind="stable")
    batches, start = [], 0
    while start < len(order):
        step = max(1, budget // (int(length[order[start]]) + beams))
        batches.append(order[start : start + step])
        start += step
    return batches
