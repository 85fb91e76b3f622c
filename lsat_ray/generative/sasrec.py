"""SASRec with a full softmax over all items: the table's trained rival (Kang and McAuley, ICDM 2018)."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lsat_ray.config import ClassicalRecipe
from lsat_ray.errors import LsatError
from lsat_ray.generative.blocks import Blocks
from lsat_ray.generative.search import Found
from lsat_ray.generative.spec import GenerativeSpec
from lsat_ray.generative.trie import Trie

LAYERS, HEADS = 2, 2


@dataclass(frozen=True)
class SasrecSpec:
    """Everything that decides the network's weights: the slices and chain of an adapter's spec, and a recipe."""

    like: GenerativeSpec
    recipe: ClassicalRecipe

    def __post_init__(self) -> None:
        """Refuse what is of adapters alone."""
        if self.like.regulariser or self.like.frozen:
            raise LsatError("sasrec: its rules are pretrain, full-retraining, single-evolving and short-term")

    @property
    def init(self) -> SasrecSpec | None:
        """The network to continue from."""
        above = self.like.init
        return SasrecSpec(above, self.recipe) if isinstance(above, GenerativeSpec) else None

    @property
    def last_period(self) -> int:
        """Newest period whose rows this network has seen."""
        return self.like.last_period

    def parents(self) -> tuple[SasrecSpec, ...]:
        """Return the specs of the networks that must exist before this one."""
        return (self.init,) if self.init else ()

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON."""
        return hashlib.sha256(json.dumps(self.manifest(), sort_keys=True).encode()).hexdigest()

    def manifest(self) -> dict[str, Any]:
        """Return the spec as JSON-ready values."""
        tree = self.like.manifest()
        kept = {k: tree[k] for k in ("data", "train", "validation", "seed")}
        task = {"split": self.like.task.split, "history": self.like.task.history}
        init = self.init.digest if self.init else None
        return {"model": "sasrec", "recipe": self.recipe.model_dump(mode="json"), **kept, "task": task, "init": init}


class Sequences(NamedTuple):
    """Targets in sequences, as `encode_targets` has them: those whose histories begin at one row share a sequence."""

    tokens: np.ndarray
    """int64 [S, L]: item + 1 of each event after an opening 0; right-padded with 0."""
    row: np.ndarray
    """int64 [N], the sequence of every target."""
    place: np.ndarray
    """int64 [N], the place whose state predicts it."""
    label: np.ndarray
    """int64 [N], items."""


class Network(nn.Module):
    """Causal attention over item embeddings with learned positions; logits are states times the same embeddings."""

    def __init__(self, items: int, history: int, recipe: ClassicalRecipe) -> None:
        super().__init__()
        width = recipe.width
        self.items = nn.Parameter(torch.randn(items + 1, width) * recipe.init_scale)
        self.places = nn.Parameter(torch.randn(history + 1, width) * recipe.init_scale)
        layer = nn.TransformerEncoderLayer(width, HEADS, width, recipe.dropout, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(recipe.dropout)

    def forward(self, tokens: torch.Tensor, row: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Return the logits of all items at some places, [N, I]; padding is behind every place that is asked for."""
        width = tokens.shape[1]
        x = self.dropout(self.items[tokens] * self.items.shape[1] ** 0.5 + self.places[:width])
        hidden: torch.Tensor = self.body(x, nn.Transformer.generate_square_subsequent_mask(width), is_causal=True)
        return self.norm(hidden[row, place]) @ self.items[1:].T


def sequences(blocks: Blocks, rows: np.ndarray, history: int) -> Sequences:
    """Return targets (rows, sorted) with at most `history` items before each."""
    start = np.maximum(blocks.begin[rows], rows - history)
    first = np.r_[True, start[1:] != start[:-1]]
    bounds = np.r_[np.flatnonzero(first), len(rows)]
    tokens = np.zeros((len(bounds) - 1, history + 1), np.int64)
    for number, (low, high) in enumerate(itertools.pairwise(bounds)):
        known = blocks.item[start[low] : rows[high - 1]]
        tokens[number, 1 : len(known) + 1] = known + 1
    return Sequences(tokens, np.cumsum(first) - 1, rows - start, blocks.item[rows].astype(np.int64))


def fit(spec: SasrecSpec, blocks: Blocks, initial: dict[str, torch.Tensor] | None) -> tuple[Network, dict[str, Any]]:
    """Fit one network on the cross-entropy over all items; the epoch with the lowest validation loss is kept.

    Args:
        spec: slices, recipe and seed.
        blocks: the log.
        initial: weights of `spec.init`.

    Returns:
        The network, and loss (nats an item), best epoch and epochs.
    """
    like, recipe = spec.like, spec.recipe
    torch.manual_seed(like.seed)
    network = Network(len(blocks.items), like.task.history, recipe)
    if initial is not None:
        network.load_state_dict(initial)
    split, history = like.task.split, like.task.history
    train, validation = (
        sequences(blocks, blocks.select(slices, split), history) for slices in (like.train, like.validation)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    order = np.random.default_rng([like.seed, 11])
    best, facts = np.inf, {"loss": np.inf, "best_epoch": 0, "epochs": 0}
    kept = {k: v.clone() for k, v in network.state_dict().items()}
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        for group in _batches(train, recipe.batch_size, order):
            optimizer.zero_grad(set_to_none=True)
            _loss(network, train, group).mean().backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            losses = [_loss(network, validation, g) for g in _batches(validation, recipe.batch_size, None)]
        value = float(torch.cat(losses).mean())
        facts["epochs"] = epoch
        if value < best:
            best, facts = value, {"loss": value, "best_epoch": epoch, "epochs": epoch}
            kept = {k: v.clone() for k, v in network.state_dict().items()}
        elif epoch - int(facts["best_epoch"]) >= recipe.patience:
            break
    network.load_state_dict(kept)
    return network.eval(), facts


@torch.no_grad()
def rank(network: Network, blocks: Blocks, rows: np.ndarray, history: int, trie: Trie, width: int = 10) -> Found:
    """Return the best semantic IDs for each target; one that several items share has the sum of their probabilities."""
    network.eval()
    asked, leaf = sequences(blocks, rows, history), torch.from_numpy(trie.leaf)
    best, score = np.empty((len(rows), width), np.int64), np.empty((len(rows), width), np.float32)
    for group in _batches(asked, 256, None):
        share = torch.softmax(_logits(network, asked, group), dim=-1)
        total, found = torch.zeros(len(share), len(trie)).index_add_(1, leaf, share).topk(width, dim=1)
        best[group], score[group] = found.numpy(), total.log().numpy()
    return Found(best, score, np.full(len(rows), width))


def _logits(network: Network, data: Sequences, group: np.ndarray) -> torch.Tensor:
    used, row = np.unique(data.row[group], return_inverse=True)
    tokens = data.tokens[used][:, : int(data.place[group].max()) + 1]
    parts: tuple[torch.Tensor, ...] = tuple(torch.from_numpy(a) for a in (tokens, row, data.place[group]))
    logits: torch.Tensor = network(*parts)
    return logits


def _loss(network: Network, data: Sequences, group: np.ndarray) -> torch.Tensor:
    logits = _logits(network, data, group)
    return functional.cross_entropy(logits, torch.from_numpy(data.label[group]), reduction="none")


def _batches(data: Sequences, size: int, order: np.random.Generator | None) -> list[np.ndarray]:
    """Return targets in batches of at least `size` (the last has fewer), whole sequences, in the given random order."""
    count = np.bincount(data.row)
    sequence = order.permutation(len(count)) if order else np.arange(len(count))
    begin = np.r_[0, np.cumsum(count)]
    batch = np.cumsum(count[sequence]) // size
    cuts = np.flatnonzero(np.diff(batch)) + 1
    return [np.concatenate([np.arange(begin[s], begin[s + 1]) for s in part]) for part in np.split(sequence, cuts)]
