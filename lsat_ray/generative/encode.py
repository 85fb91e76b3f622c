"""Targets as sequences of tokens: a user's history of items' codes, then the next item's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lsat_ray.errors import LsatError
from lsat_ray.generative.blocks import Blocks, code_name
from lsat_ray.prompts.batch import Encoded

INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nThe user has interacted with items ",
    ", ",
    " in chronological order. Predict the next item that the user will interact with.\n\n### Response:\n",
)
"""What stands before, between and after the history of a backbone that reads text: PESO's shape, the wording ours."""


@dataclass(frozen=True)
class Codes:
    """How items become tokens; a code's class is `level * size + code`."""

    tokens: np.ndarray
    """int64 [M * size], token id of every class."""
    size: int
    """Codes of a level."""
    before: tuple[int, ...]
    """Tokens that open every sequence."""
    between: tuple[int, ...] = ()
    """Tokens between two items of a history."""
    after: tuple[int, ...] = ()
    """Tokens between the history and the next item."""

    @property
    def shared(self) -> bool:
        """Whether a sequence is nothing but codes, so that one user's targets can share it."""
        return not self.between and not self.after

    def classes(self, codes: np.ndarray) -> np.ndarray:
        """Return the classes of codes [..., M]."""
        return codes.astype(np.int64) + self.size * np.arange(codes.shape[-1])


def code_names(levels: int, size: int) -> list[str]:
    """Return the tokens' names by class."""
    return [code_name(level, code) for level in range(levels) for code in range(size)]


def find_codes(tokenizer: Any, levels: int, size: int, text: bool) -> Codes:
    """Return how a tokenizer that has the codes writes items.

    Args:
        tokenizer: transformers'.
        levels: M.
        size: codes of a level.
        text: whether the instruction stands around the history (a backbone that knows words), or nothing does.

    Raises:
        LsatError: when the tokenizer lacks a code.
    """
    names = code_names(levels, size)
    found = tokenizer.convert_tokens_to_ids(names)
    unknown = [n for n, i in zip(names, found, strict=True) if i is None or i == tokenizer.unk_token_id]
    if unknown:
        raise LsatError(f"backbone: its tokenizer has no token {unknown[0]}; add the codes of this log to it")
    opening = () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)
    tokens = np.array(found, dtype=np.int64)
    if not text:
        if not opening:
            raise LsatError("backbone: its tokenizer has no token to open a sequence with; set bos_token")
        return Codes(tokens, size, opening)
    before, between, after = (tuple(tokenizer.encode(t, add_special_tokens=False)) for t in INSTRUCTION)
    return Codes(tokens, size, opening + before, between, after)


def encode_targets(blocks: Blocks, rows: np.ndarray, codes: Codes, history: int) -> Encoded:
    """Encode targets with their answers: M answers a target, each the class of its next code.

    Where sequences are nothing but codes, the targets whose histories begin at the same row share one sequence; what
    a target sees is its own history either way.

    Args:
        blocks: the log.
        rows: int [N], target rows, sorted.
        codes: of the backbone.
        history: most items before a target.
    """
    start = np.maximum(blocks.begin[rows], rows - history)
    first = np.r_[True, start[1:] != start[:-1]] if codes.shared else np.ones(len(rows), bool)
    bounds = np.r_[np.flatnonzero(first), len(rows)]
    classes, levels = codes.classes(blocks.codes), blocks.codes.shape[1]
    tokens, answers, length = [], [], 0
    for low, high in itertools.pairwise(bounds):
        begin, last = start[low], rows[high - 1]
        opening = _prompt(codes, classes, blocks.item[begin:last])
        sequence = np.concatenate([opening, codes.tokens[classes[blocks.item[last], :-1]]])
        place = len(opening) - levels * (last - rows[low:high])  # where each target's first code would stand
        answers.append(length + place[:, None] - 1 + np.arange(levels))
        tokens.append(sequence)
        length += len(sequence)
    return Encoded(
        prefix=np.empty(0, np.int32),
        tokens=np.concatenate(tokens).astype(np.int32),
        offsets=np.r_[0, np.cumsum([len(t) for t in tokens])],
        answer=np.concatenate(answers).reshape(-1),
        sequence=np.repeat(np.cumsum(first) - 1, levels),
        row=np.repeat(rows, levels),
        label=classes[blocks.item[rows]].reshape(-1),
    )


class Prompts(NamedTuple):
    """Histories without their targets, right-padded."""

    tokens: np.ndarray
    """int64 [N, L]."""
    length: np.ndarray
    """int64 [N]."""


def encode_histories(blocks: Blocks, rows: np.ndarray, codes: Codes, history: int) -> Prompts:
    """Encode what stands before each target's first code."""
    start = np.maximum(blocks.begin[rows], rows - history)
    classes = codes.classes(blocks.codes)
    return pad([_prompt(codes, classes, blocks.item[s:r]) for s, r in zip(start, rows, strict=True)])


def pad(sequences: Sequence[np.ndarray]) -> Prompts:
    """Pad sequences on the right with token 0."""
    length = np.array([len(s) for s in sequences], dtype=np.int64)
    tokens = np.zeros((len(sequences), length.max()), dtype=np.int64)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    return Prompts(tokens, length)


def _prompt(codes: Codes, classes: np.ndarray, items: np.ndarray) -> np.ndarray:
    body = codes.tokens[classes[items]]
    if codes.between and len(items):
        gap = np.broadcast_to(np.array(codes.between), (len(items), len(codes.between)))
        body = np.concatenate([gap, body], axis=1).reshape(-1)[len(codes.between) :]
    return np.concatenate([codes.before, body.reshape(-1), codes.after]).astype(np.int64)
