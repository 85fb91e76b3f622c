"""Encoded sequences, ragged in memory, and the padded batches that a model sees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lsat_ray.errors import LsatError


@dataclass(frozen=True)
class Encoded:
    """Sequences of tokens, each with one or more targets, behind a prefix that all of them share.

    Three rules decide what token i of a sequence sees, besides the prefix: only tokens j <= i; only tokens j of its
    own segment or of segment 0; only tokens j >= window[i]. `segment` and `window` are None where they do not bind
    (the exact layout), which leaves plain causal attention.
    """

    prefix: np.ndarray
    """int32 [P], tokens that open every sequence."""
    tokens: np.ndarray
    """int32 [T], all sequences one after the other, without the prefix."""
    offsets: np.ndarray
    """int64 [S + 1], where sequence s begins and ends in `tokens`."""
    answer: np.ndarray
    """int64 [N], position in `tokens` at which a target's answer is read."""
    sequence: np.ndarray
    """int64 [N], the sequence that a target belongs to; non-decreasing."""
    row: np.ndarray
    """int64 [N], sample row of each target."""
    label: np.ndarray
    """uint8 [N]."""
    position: np.ndarray | None = None
    """int32 [T], position id counted from the end of the prefix (None: 0, 1, 2, ... in each sequence)."""
    segment: np.ndarray | None = None
    """int32 [T], 0 for tokens that all later ones of the sequence may see."""
    window: np.ndarray | None = None
    """int32 [T], first token of the sequence (its own index within the sequence) that this token may see."""
    weight: np.ndarray | None = None
    """float32 [N], weight of each target in the training loss, 1 on average (None: all 1)."""
    profile: np.ndarray | None = None
    """float32 [S, P], what a conventional recommender says of each sequence's target (RecLoRA)."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence without the prefix, [S]."""
        return np.diff(self.offsets)

    @property
    def targets(self) -> np.ndarray:
        """Targets of each sequence, [S]."""
        return np.bincount(self.sequence, minlength=len(self))


@dataclass(frozen=True)
class Batch:
    """One forward pass: B sequences, right-padded to L tokens, behind a shared prefix of P."""

    prefix: torch.Tensor
    """int64 [P]."""
    tokens: torch.Tensor
    """int64 [B, L]."""
    position: torch.Tensor
    """int64 [B, L], counted from the start of the prefix."""
    mask: torch.Tensor | None
    """bool [B, 1, L, P + L], True where query sees key; None for plain causal attention."""
    answer: torch.Tensor
    """int64 [N, 2], (sequence, position) of each answer."""
    label: torch.Tensor
    """float32 [N]."""
    sequence: torch.Tensor
    """int64 [B], which sequences of the `Encoded` these are."""
    index: np.ndarray
    """int64 [N], position of each target in the `Encoded` that it came from."""
    noise: tuple[int, int] | None = None
    """(seed, step) of the dropout masks; None where nothing is dropped."""
    weight: torch.Tensor | None = None
    """float32 [N], weight of each target in the training loss; None: all 1."""
    profile: torch.Tensor | None = None
    """float32 [B, P]."""
    language: bool = False
    """Whether the model is asked for the loss of the whole text, not for the answers' logits (`recipe.loss`)."""

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device; on its way to a GPU it is pinned, so that the copy does not wait."""
        pinned = torch.device(device).type == "cuda"

        def move(t: torch.Tensor) -> torch.Tensor:
            return (t.pin_memory() if pinned and not t.is_cuda else t).to(device, non_blocking=True)

        mask, weight, profile = (None if t is None else move(t) for t in (self.mask, self.weight, self.profile))
        return Batch(
            move(self.prefix),
            move(self.tokens),
            move(self.position),
            mask,
            move(self.answer),
            move(self.label),
            move(self.sequence),
            self.index,
            self.noise,
            weight,
            profile,
            self.language,
        )


def collate(encoded: Encoded, sequences: np.ndarray, pad: int = 0, noise: tuple[int, int] | None = None) -> Batch:
    """Pad some sequences into one batch.

    Padding stands on the right, where causal attention never looks, so the exact layout needs no mask.

    Args:
        encoded: the sequences.
        sequences: int [B], which of them.
        pad: any token id of the vocabulary.
        noise: (seed, step) of the dropout masks, for a step of training.
    """
    sequences = np.asarray(sequences)
    starts, lengths = encoded.offsets[sequences], encoded.lengths[sequences]
    batch, longest, prefix = len(sequences), int(lengths.max()), len(encoded.prefix)
    column = np.arange(longest)
    real = column[None, :] < lengths[:, None]
    source = np.where(real, starts[:, None] + column[None, :], 0)

    def gather(values: np.ndarray, fill: Any) -> np.ndarray:
        return np.where(real, values[source], fill)

    tokens = gather(encoded.tokens, pad).astype(np.int64)
    if encoded.position is None:
        position = np.broadcast_to(column[None, :], (batch, longest)).astype(np.int64)
    else:
        position = gather(encoded.position, 0).astype(np.int64)
    mask = None
    if encoded.segment is not None or encoded.window is not None:
        mask = torch.from_numpy(_visible(encoded, gather, real, prefix))
    first = np.searchsorted(encoded.sequence, sequences, side="left")
    last = np.searchsorted(encoded.sequence, sequences, side="right")
    index = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
    row = np.repeat(np.arange(batch), last - first)
    answer = np.stack([row, encoded.answer[index] - starts[row]], axis=1)
    return Batch(
        prefix=torch.from_numpy(encoded.prefix.astype(np.int64)),
        tokens=torch.from_numpy(tokens),
        position=torch.from_numpy(position + prefix),
        mask=mask,
        answer=torch.from_numpy(answer.astype(np.int64)),
        label=torch.from_numpy(encoded.label[index].astype(np.float32)),
        sequence=torch.from_numpy(sequences.astype(np.int64)),
        index=index,
        noise=noise,
        weight=None if encoded.weight is None else torch.from_numpy(encoded.weight[index]),
        profile=None if encoded.profile is None else torch.from_numpy(encoded.profile[sequences]),
    )


def _visible(encoded: Encoded, gather: Any, real: np.ndarray, prefix: int) -> np.ndarray:
    """Return bool [B, 1, L, P + L]; a padded query sees itself, so that no softmax is empty."""
    batch, longest = real.shape
    column = np.arange(longest)
    sees = np.broadcast_to(column[None, None, :] <= column[None, :, None], (batch, longest, longest)).copy()
    if encoded.segment is not None:
        segment = gather(encoded.segment, -1)
        sees &= (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    if encoded.window is not None:
        window = gather(encoded.window, 0)
        sees &= column[None, None, :] >= window[:, :, None]
    sees |= np.eye(longest, dtype=bool)[None]
    everything = np.concatenate([np.ones((batch, longest, prefix), bool), sees], axis=2)
    return everything[:, None]


def join(parts: list[Encoded]) -> Encoded:
    """Return several encodings as one; their prefixes must be equal.

    Raises:
        LsatError: when the parts do not share their prefix.
    """
    first = parts[0]
    if any(not np.array_equal(p.prefix, first.prefix) for p in parts):
        raise LsatError("prompts: encodings with different prefixes cannot be joined; encode the rows together")
    tokens = np.cumsum([0] + [len(p.tokens) for p in parts])
    sequences = np.cumsum([0] + [len(p) for p in parts])

    def column(name: str) -> np.ndarray | None:
        values = [getattr(p, name) for p in parts]
        return None if any(v is None for v in values) else np.concatenate(values)

    return Encoded(
        prefix=first.prefix,
        tokens=np.concatenate([p.tokens for p in parts]),
        offsets=np.concatenate([[0]] + [p.offsets[1:] + shift for p, shift in zip(parts, tokens, strict=False)]),
        answer=np.concatenate([p.answer + shift for p, shift in zip(parts, tokens, strict=False)]),
        sequence=np.concatenate([p.sequence + shift for p, shift in zip(parts, sequences, strict=False)]),
        row=np.concatenate([p.row for p in parts]),
        label=np.concatenate([p.label for p in parts]),
        position=column("position"),
        segment=column("segment"),
        window=column("window"),
        weight=column("weight"),
        profile=column("profile"),
    )


def apart(encoded: Encoded, profile: np.ndarray | None = None) -> Encoded:
    """Return the encoding with the prefix as the first tokens of each sequence, and with vectors of these.

    Args:
        encoded: of one layout without positions or masks of its own.
        profile: float32 [S, P]; None leaves those that there are.

    Raises:
        LsatError: for another layout.
    """
    if encoded.position is not None or len(encoded.row) != len(encoded):
        raise LsatError("prompt.layout: reclora and recipe.loss: language need one prompt a sample; set it to exact")
    width = len(encoded.prefix)
    tokens = [np.concatenate([encoded.prefix, own]) for own in np.split(encoded.tokens, encoded.offsets[1:-1])]
    return replace(
        encoded,
        prefix=encoded.prefix[:0],
        tokens=np.concatenate(tokens),
        offsets=encoded.offsets + width * np.arange(len(encoded) + 1),
        answer=encoded.answer + width * (encoded.sequence + 1),
        profile=encoded.profile if profile is None else profile,
    )


def by_age(encoded: Encoded, half_life: float) -> Encoded:
    """Return the encoding with weights that halve with age: 0.5 ** ((newest row - row) / half_life), 1 on average.

    Args:
        encoded: the training rows.
        half_life: in samples of the stream.
    """
    age = encoded.row.max() - encoded.row.astype(np.float64)
    weight = 0.5 ** (age / half_life)
    return replace(encoded, weight=(weight / weight.mean()).astype(np.float32))


def plan_epoch(encoded: Encoded, batch_size: int, generator: np.random.Generator, bucket: int = 8) -> list[np.ndarray]:
    """Return the global batches of one epoch: random, of about `batch_size` targets, of similar length.

    Sequences are shuffled, sorted by length within runs of `bucket` batches, cut, and the batches shuffled. The plan
    depends on the generator only, never on the number of workers.
    """
    order = generator.permutation(len(encoded))
    targets = encoded.targets
    per_batch = max(1, round(batch_size / max(targets.mean(), 1e-9)))
    lengths = encoded.lengths
    batches = []
    for start in range(0, len(order), per_batch * bucket):
        run = order[start : start + per_batch * bucket]
        run = run[np.argsort(lengths[run], kind="stable")]
        batches += [run[i : i + per_batch] for i in range(0, len(run), per_batch)]
    return [batches[i] for i in generator.permutation(len(batches))]


def split_by_tokens(sequences: np.ndarray, lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """Deal a batch's sequences to `parts` workers so that their tokens balance (longest first, to the least loaded).

    Args:
        sequences: int [B], the batch.
        lengths: int [S], tokens of every sequence.
        parts: how many shares; some may be empty.
    """
    if parts == 1:
        return [sequences]
    shares: list[list[int]] = [[] for _ in range(parts)]
    load = np.zeros(parts)
    for s in sequences[np.argsort(-lengths[sequences], kind="stable")]:
        least = int(np.argmin(load))
        shares[least].append(int(s))
        load[least] += lengths[s]
    return [np.array(sorted(share), dtype=np.int64) for share in shares]


def token_budget_batches(encoded: Encoded, budget: int, sequences: np.ndarray | None = None) -> list[np.ndarray]:
    """Return batches of similar length whose padded tokens stay within `budget` (one sequence at least)."""
    chosen = np.arange(len(encoded)) if sequences is None else sequences
    lengths = encoded.lengths
    ordered = chosen[np.argsort(-lengths[chosen], kind="stable")]
    batches, start = [], 0
    while start < len(ordered):
        size = max(1, budget // max(1, int(lengths[ordered[start]])))
        batches.append(ordered[start : start + size])
        start += size
    return batches
