"""Prefix states that are kept give what computing them again gives, belong to one adapter, and stay within bounds."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from desks import TestDesk, body_of, desk_for, http, models_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_together import LAYOUTS, adapters_of, asks_of
from workbench import Workbench

from lsat_ray.backbone.states import PrefixStates
from lsat_ray.config import Experiment, PromptConfig
from lsat_ray.data.periods import Periods
from lsat_ray.prompts.encode import Encoder
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.prefix import Ask, assemble, prepare
from lsat_ray.scoring.recommender import Recommender
from lsat_ray.scoring.score import part
from lsat_ray.scoring.served import Served
from lsat_ray.scoring.states import StateCache


@pytest.fixture
def served(tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, tmp_path: Path) -> TestDesk:
    return desk_for(tiny_experiment, tiny_periods, tiny_backbone_folder, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 2])
def test_margins_are_those_of_a_pass_that_computes_its_prefix(bench: Workbench, layout: Any, count: int) -> None:
    """From nothing, from each beginning of the prefix, and from the whole of it."""
    worn = adapters_of(bench, count)
    encoder = Encoder(bench.backbone.tokenizer, PromptConfig(layout=layout), bench.periods.titles)
    for encoded, group in assemble(encoder, [prepare(encoder, ask) for ask in asks_of(bench.periods, (1, 4))], 2048):
        index, expected = part(bench.model, worn, encoded, 2048, group)
        whole = PrefixStates()
        np.testing.assert_allclose(part(bench.model, worn, encoded, 2048, group, whole)[1], expected, atol=4e-6)
        assert whole.length == len(encoded.prefix)
        for known in {1, whole.length // 2, whole.length - 1, whole.length} - {0, -1}:
            states = PrefixStates([(k[:, :known], v[:, :known]) for k, v in whole.layers])
            again, margin = part(bench.model, worn, encoded, 2048, group, states)
            np.testing.assert_array_equal(again, index)
            np.testing.assert_allclose(margin, expected, atol=4e-6)
            assert states.length == whole.length
            for mine, theirs in zip(states.layers, whole.layers, strict=True):
                for one, other in zip(mine, theirs, strict=True):
                    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_wrong_states_would_be_seen(bench: Workbench) -> None:
    """The equality above says something: states of another adapter give other margins."""
    (first, second), encoder = adapters_of(bench), bench.encoder
    ((encoded, group),) = assemble(encoder, [prepare(encoder, asks_of(bench.periods, (4,))[0])], 2048)
    states = PrefixStates()
    _, expected = part(bench.model, [first], encoded, 2048, group, states)
    part(bench.model, [second], encoded, 2048, group, other := PrefixStates())
    assert other.length == states.length > 0
    _, wrong = part(bench.model, [first], encoded, 2048, group, other)
    assert np.abs(wrong - expected).max() > 1e-3


def test_who_asks_again_is_not_computed_again(served: TestDesk, tiny_periods: Periods) -> None:
    recommender, encoder = served.desk.recommender, served.bench.encoder
    model, cache = models_of(served.adapters)[0], served.desk.recommender.states
    ask = asks_of(tiny_periods, (6,))[0]
    first = recommender.rank(model, encoder, ask)
    prefix = len(assemble(encoder, [prepare(encoder, ask)], 2048)[0][0].prefix)
    assert (cache.hits, cache.misses) == (0, 2 * prefix)  # both adapters of the ensemble
    np.testing.assert_allclose(recommender.rank(model, encoder, ask), first, atol=1e-6)
    assert (cache.hits, cache.misses) == (2 * prefix, 2 * prefix)
    longer = Ask(ask.history, (*ask.candidates, "another"))
    np.testing.assert_allclose(recommender.rank(model, encoder, longer)[:6], first, atol=1e-6)
    assert cache.misses - 2 * prefix <= 2 * 20  # the question's beginning at most


def test_the_preamble_is_computed_once_for_all_users(served: TestDesk, tiny_periods: Periods) -> None:
    recommender, encoder = served.desk.recommender, served.bench.encoder
    model, cache = models_of(served.adapters)[1], served.desk.recommender.states
    total = 0
    for ask in asks_of(tiny_periods, (1, 1, 1)):
        recommender.rank(model, encoder, ask)
        total += sum(len(encoded.prefix) for encoded, _ in assemble(encoder, [prepare(encoder, ask)], 2048))
    assert cache.misses == len(encoder._preamble)  # a longer one goes on from a shorter one
    assert cache.hits == total - cache.misses > 2 * cache.misses


def test_no_state_outlives_its_model(served: TestDesk, tiny_periods: Periods) -> None:
    """A swap under the same name meets nothing of the old model, and leaves nothing of it behind."""
    desk, models = served.desk, models_of(served.adapters)
    recommender, encoder, ask = desk.recommender, served.bench.encoder, asks_of(tiny_periods, (5,))[0]
    old, new = (models[1], models_of(served.adapters[1:] + served.adapters[:1])[1])
    assert old.strategy == new.strategy and old.adapters != new.adapters

    def swap(version: int, model: Model) -> None:
        following = Served(version, (model,))
        asyncio.run(desk.prepare(following))
        asyncio.run(desk.commit(following.digest))

    swap(2, old)
    recommender.rank(old, encoder, ask)
    assert recommender.states.bytes > 0
    swap(3, new)
    assert recommender.states.bytes == 0
    recommender.states.keep(
        [old.adapters[0]], np.arange(3, dtype=np.int32), 0, states_of(3)
    )  # a pass that was under way
    assert recommender.states.bytes == 0
    hits = recommender.states.hits
    found = recommender.rank(new, encoder, ask)
    assert recommender.states.hits == hits
    fresh = Recommender(served.bench.model, recommender.store)
    fresh.prepare([new])
    np.testing.assert_allclose(found, fresh.rank(new, encoder, ask), atol=1e-6)


def states_of(length: int, copies: int = 1, seed: int = 0) -> PrefixStates:
    """Return random states of two layers: 2 * 2 * copies * length * 8 bytes * 4."""
    generator = torch.Generator().manual_seed(seed)
    pair = [torch.randn(copies, length, 2, 4, generator=generator) for _ in range(4)]
    return PrefixStates([(pair[0], pair[1]), (pair[2], pair[3])])


TOKEN = 2 * 2 * 2 * 4 * 4
"""Bytes of a token in `states_of`."""


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 6), st.booleans()), max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_cache_is_bounded_and_gives_the_longest_beginning_of_the_same_adapter(
    calls: list[tuple[str, int, bool]],
) -> None:
    cache, kept = StateCache(12 * TOKEN), dict[tuple[str, int], PrefixStates]()
    cache.serve("ab")
    prefix = np.arange(6, dtype=np.int32)
    for worn, length, adds in calls:
        found = cache.find([worn], prefix[:length])
        if found.length:
            expected = kept[worn, found.length]
            assert all(torch.equal(a[0], b[0]) for a, b in zip(found.layers, expected.layers, strict=True))
        assert found.length <= length
        if adds and found.length < length:
            kept[worn, length] = states_of(length, seed=len(kept))
            cache.keep([worn], prefix[:length], found.length, kept[worn, length])
            assert cache.find([worn], prefix[:length]).length == length  # the newest is never the first to go
        assert cache.bytes == sum(TOKEN * len(tokens) // 4 for _, tokens in cache._kept) <= 12 * TOKEN


def test_the_least_recently_used_goes_first() -> None:
    cache = StateCache(3 * TOKEN)
    cache.serve("a")
    prefixes = [np.array([i], dtype=np.int32) for i in range(4)]
    for prefix in prefixes[:3]:
        cache.keep("a", prefix, 0, states_of(1))
    cache.find("a", prefixes[0])
    cache.keep("a", prefixes[3], 0, states_of(1))
    assert [cache.find("a", prefix).length for prefix in prefixes] == [1, 0, 1, 1]
    cache.keep("a", np.arange(4, dtype=np.int32) + 9, 0, states_of(4))  # larger than everything that may be kept
    assert cache.bytes <= 3 * TOKEN


def test_states_of_adapters_that_shared_a_pass_serve_each_alone() -> None:
    cache = StateCache(1 << 20)
    cache.serve("abc")
    prefix, both = np.arange(5, dtype=np.int32), states_of(5, copies=2)
    cache.keep("ab", prefix, 0, both)
    for number, one in enumerate("ab"):
        assert torch.equal(cache.find(one, prefix).layers[1][1], both.layers[1][1][number : number + 1])
    assert torch.equal(cache.find("ba", prefix).layers[0][0], both.layers[0][0].flip(0))
    assert cache.find("ac", prefix).length == 0  # nothing is known of c


def test_a_limit_of_zero_keeps_nothing() -> None:
    cache = StateCache(0)
    cache.serve("a")
    cache.keep("a", np.arange(5, dtype=np.int32), 0, states_of(5))
    assert cache.bytes == 0 and cache.find("a", np.arange(5, dtype=np.int32)).length == 0
    assert cache.misses == 5


def test_metrics_tell_hits_misses_and_bytes(served: TestDesk, tiny_periods: Periods) -> None:
    desk = served.desk

    async def asked() -> list[dict[str, float]]:
        found = []
        body = {k: v for k, v in body_of(tiny_periods, 3).items() if k == "history"}
        async with http(desk) as client:
            for _ in range(2):
                reply = await client.post("/v1/rank", json={**body, "candidates": tiny_periods.titles[:5]})
                reply.raise_for_status()
                text = (await client.get("/metrics")).text
                lines = re.findall(r"^lsat_ray_prefix_(\w+)\{.*\} (\S+)$", text, re.M)
                found.append({name: float(value) for name, value in lines})
        return found

    first, second = asyncio.run(asked())
    assert (
        first["hits_total"] == 0 and first["misses_total"] > 0 and first["bytes"] == desk.recommender.states.bytes > 0
    )
    assert second["hits_total"] == first["misses_total"] == second["misses_total"]
