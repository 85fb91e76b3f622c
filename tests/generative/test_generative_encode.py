"""Sequences: what a shared sequence computes is what each target computes alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from lsat_ray.generative.blocks import Blocks
from lsat_ray.generative.encode import encode_histories, encode_targets
from lsat_ray.generative.model import GenerativeModel
from lsat_ray.prompts.batch import collate


def test_tokens_by_hand(model: GenerativeModel, log: Blocks) -> None:
    first = log.rows(1, "train")[:2]
    encoded = encode_targets(log, first, model.codes, 8)
    names = model.codes.tokens[model.codes.classes(log.codes)]
    items = log.item[first]
    assert len(encoded) == 1, "both targets stand in one sequence"
    expected = [*model.codes.before, *names[items[0]], *names[items[1]][:-1]]
    assert encoded.tokens.tolist() == expected
    assert encoded.answer.tolist() == list(range(8))
    assert encoded.label.tolist() == model.codes.classes(log.codes[items]).reshape(-1).tolist()
    assert encoded.row.tolist() == [first[0]] * 4 + [first[1]] * 4


def test_a_shared_sequence_says_what_single_ones_say(model: GenerativeModel, log: Blocks) -> None:
    rows = np.sort(np.concatenate([log.rows(p, "all") for p in (1, 2)]))[:150]
    history = 4  # shorter than most users' past, so that some targets need a sequence of their own
    together = encode_targets(log, rows, model.codes, history)
    assert 1 < len(together) < len(rows)
    with torch.no_grad():
        shared = model(collate(together, np.arange(len(together))))
        alone = torch.cat([_single(model, log, int(row), history) for row in rows])
    np.testing.assert_allclose(shared, alone, atol=2e-5)


def _single(model: GenerativeModel, log: Blocks, row: int, history: int) -> torch.Tensor:
    encoded = encode_targets(log, np.array([row]), model.codes, history)
    assert len(encoded.tokens) <= 4 * history + 4
    return model(collate(encoded, np.array([0])))


def test_histories_end_where_the_target_begins(model: GenerativeModel, log: Blocks) -> None:
    rows = log.rows(2, "all")
    prompts = encode_histories(log, rows, model.codes, 5)
    for tokens, length, row in zip(prompts.tokens, prompts.length, rows, strict=True):
        encoded = encode_targets(log, np.array([row]), model.codes, 5)
        assert tokens[:length].tolist() == encoded.tokens[: encoded.answer[0] + 1].tolist()
        assert (tokens[length:] == 0).all()


def test_words_around_the_history(log: Blocks, model: GenerativeModel) -> None:
    spoken = replace(model.codes, between=(7, 8), after=(9,))
    rows = log.rows(1, "all")[:3]
    encoded = encode_targets(log, rows, spoken, 8)
    assert len(encoded) == 3, "targets cannot share a sequence with words in it"
    names = model.codes.tokens[model.codes.classes(log.codes)][log.item[rows]].tolist()
    sequence = encoded.tokens[encoded.offsets[2] :].tolist()
    assert sequence == [*spoken.before, *names[0], 7, 8, *names[1], 9, *names[2][:-1]]
    assert (encoded.answer - encoded.offsets[encoded.sequence])[-4:].tolist() == [
        len(sequence) - 4 + k for k in range(4)
    ]
