"""The trained rival: what a target sees, that it learns, and its ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lsat_ray.adapters.spec import Regulariser
from lsat_ray.config import ClassicalRecipe, LoraSettings, Recipe
from lsat_ray.errors import LsatError
from lsat_ray.generative import sasrec
from lsat_ray.generative.blocks import Blocks
from lsat_ray.generative.metrics import above_target
from lsat_ray.generative.rules import RULES, Setting
from lsat_ray.generative.sasrec import Network, SasrecSpec
from lsat_ray.generative.spec import Task
from lsat_ray.generative.trie import Trie

RECIPE = ClassicalRecipe(width=16, lr=5e-3, batch_size=32, epochs=15, patience=3)


def spec(log: Blocks, rule: str, t: int, seed: int = 0) -> SasrecSpec:
    base = Setting("b", log.fingerprint, Task(history=8), LoraSettings(), Recipe(), Recipe(), seed)
    return SasrecSpec(RULES[rule](base, t).adapters[0], RECIPE)


def test_a_target_sees_its_own_history_and_no_more(log: Blocks) -> None:
    rows = log.rows(2, "train")
    data = sasrec.sequences(log, rows, 8)
    for number, row in enumerate(rows):
        start = max(log.begin[row], row - 8)
        seen = data.tokens[data.row[number], : data.place[number] + 1]
        assert seen.tolist() == [0, *(log.item[start:row] + 1)]
        assert data.label[number] == log.item[row]
    torch.manual_seed(0)
    network = Network(len(log.items), 8, RECIPE).eval()
    alone = torch.cat([sasrec._logits(network, data, np.array([i])) for i in range(10)])
    torch.testing.assert_close(sasrec._logits(network, data, np.arange(10)), alone, atol=1e-5, rtol=0)


def test_batches_hold_every_target_once(log: Blocks) -> None:
    data = sasrec.sequences(log, log.rows(1, "train"), 8)
    for order in (None, np.random.default_rng(0)):
        batches = sasrec._batches(data, 32, order)
        assert sorted(np.concatenate(batches)) == list(range(len(data.row)))


def test_it_learns_and_repeats_itself(log: Blocks) -> None:
    network, facts = sasrec.fit(spec(log, "pretrain", 2), log, None)
    assert facts["loss"] < np.log(len(log.items)) - 0.5
    again, _ = sasrec.fit(spec(log, "pretrain", 2), log, None)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in network.state_dict().items())
    trie, rows = Trie.build(log.codes), log.tests(1, "leave-two-out")
    found = sasrec.rank(network, log, rows, 8, trie)
    above = above_target(found.leaf, trie.leaf[log.item[rows]])
    assert (above >= 0).mean() > 2 * 10 / len(log.items)
    logits = sasrec._logits(network, sasrec.sequences(log, rows, 8), np.arange(len(rows)))
    assert found.leaf[:, 0].tolist() == trie.leaf[logits.argmax(1).numpy()].tolist()


def test_shared_codes_add_up(log: Blocks) -> None:
    codes = log.codes.copy()
    codes[1::2] = codes[::2]
    network, rows = Network(len(log.items), 8, RECIPE), log.tests(1, "leave-two-out")[:3]
    found = sasrec.rank(network, log, rows, 8, Trie.build(codes), width=len(log.items) // 2)
    np.testing.assert_allclose(np.exp(found.score).sum(1), 1, rtol=1e-4)


def test_specs_name_what_decides_and_nothing_of_adapters(log: Blocks) -> None:
    one = spec(log, "single-evolving", 3)
    assert one.init is not None and one.init.digest == spec(log, "single-evolving", 2).digest
    others = [spec(log, "single-evolving", 3, seed=1), spec(log, "full-retraining", 3), spec(log, "pretrain", 3)]
    assert len({s.digest for s in [one, *others]}) == 4
    like = one.like
    with pytest.raises(LsatError, match="its rules are"):
        SasrecSpec(replace(like, regulariser=Regulariser("l2", 1.0)), RECIPE)
