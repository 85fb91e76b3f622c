"""The protocol of the blocks end to end: an oracle gets 1.0 on every test, a random ranker its expectation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lsat_ray.generative import synthetic
from lsat_ray.generative.blocks import Blocks, read
from lsat_ray.generative.metrics import FIELDS, above_items, above_target, ranking_metrics
from lsat_ray.generative.trie import Trie

NAMES = ("synthetic", "video_games", "cds")


def log_of(name: str) -> Blocks:
    """Return a log by name; the published ones where they are at hand."""
    if name == "synthetic":
        return synthetic.generate(users=400, items=500, size=6, seed=2)
    if "LSAT_RAY_DATA" not in os.environ:
        pytest.skip("LSAT_RAY_DATA does not point at real logs")
    return read(Path(os.environ["LSAT_RAY_DATA"]) / "amazon-blocks" / name)


@pytest.fixture(scope="module", params=[pytest.param(n, marks=[pytest.mark.data] * (n != NAMES[0])) for n in NAMES])
def log(request: pytest.FixtureRequest) -> Blocks:
    """Return each log."""
    return log_of(request.param)


@pytest.fixture(scope="module")
def trie(log: Blocks) -> Trie:
    """Return its trie."""
    return Trie.build(log.codes)


def test_every_tested_block_has_one_test_for_each_user_of_three_events(log: Blocks) -> None:
    for period in range(2, log.count + 1):
        rows = log.tests(period, "leave-two-out")
        here = log.user[log.block == period - 1]
        assert len(rows) == (np.bincount(here) >= 3).sum() == len(np.unique(log.user[rows]))


def test_an_oracle_gets_one(log: Blocks, trie: Trie) -> None:
    size = np.bincount(trie.leaf, minlength=len(trie))
    for period in range(2, log.count + 1):
        target = trie.leaf[log.item[log.tests(period, "leave-two-out")]]
        leaves = (target[:, None] + np.arange(10)) % len(trie)
        assert all((v == 1).all() for v in ranking_metrics(above_target(leaves, target)).values())
        by_item = ranking_metrics(*above_items(leaves, target, size))
        assert all((v[size[target] == 1] == 1).all() for v in by_item.values())


def test_a_random_ranker_gets_its_expectation(log: Blocks, trie: Trie, rng: np.random.Generator) -> None:
    """Ten different leaves per test; enough draws that some 200 of them hit."""
    rows = np.concatenate([log.tests(p, "leave-two-out") for p in range(2, log.count + 1)])
    target = np.tile(trie.leaf[log.item[rows]], -(-20 * len(trie) // len(rows)))
    start, step = rng.integers(0, len(trie), len(target)), rng.integers(1, len(trie) // 10, len(target))
    leaves = (start[:, None] + step[:, None] * np.arange(10)) % len(trie)
    found = ranking_metrics(above_target(leaves, target))
    gain = {"hit": np.ones(10), "ndcg": 1 / np.log2(np.arange(10) + 2)}
    for field in FIELDS:
        cut = int(field.removeprefix("hit").removeprefix("ndcg"))
        expected = gain[field[: -len(str(cut))]][:cut].sum() / len(trie)
        error = found[field].std() / len(target) ** 0.5
        assert found[field].mean() == pytest.approx(expected, abs=4 * error)
