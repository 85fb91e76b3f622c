"""Batches: every sequence once, deterministic, balanced, padded where nothing looks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsat_ray.prompts.batch import Encoded, by_age, collate, join, plan_epoch, split_by_tokens, token_budget_batches


def ragged(lengths: list[int], targets: list[int] | None = None) -> Encoded:
    """Return sequences of the given lengths, with answers at their ends."""
    count = targets or [1] * len(lengths)
    offsets = np.r_[0, np.cumsum(lengths)]
    sequence = np.repeat(np.arange(len(lengths)), count)
    number = np.concatenate([np.arange(c) for c in count])
    return Encoded(
        prefix=np.array([7, 8], np.int32),
        tokens=np.arange(offsets[-1], dtype=np.int32) + 10,
        offsets=offsets,
        answer=offsets[sequence + 1] - 1 - number,
        sequence=sequence,
        row=np.arange(len(sequence)) * 3,
        label=(np.arange(len(sequence)) % 2).astype(np.uint8),
    )


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@settings(max_examples=40)
@given(sizes, st.integers(1, 20), st.integers(0, 5))
def test_an_epoch_holds_every_sequence_once(lengths: list[int], batch: int, seed: int) -> None:
    plan = plan_epoch(ragged(lengths), batch, np.random.default_rng(seed))
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))
    assert max(len(b) for b in plan) <= batch


def test_an_epoch_depends_on_the_generator_alone() -> None:
    encoded = ragged(list(np.random.default_rng(1).integers(5, 40, 200)))
    a, b, c = (plan_epoch(encoded, 16, np.random.default_rng(s)) for s in (4, 4, 5))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(a, c, strict=True))


def test_an_epoch_puts_like_lengths_together() -> None:
    encoded = ragged(list(np.random.default_rng(1).integers(5, 200, 1024)))
    lengths = encoded.lengths
    padded = sum(len(b) * lengths[b].max() for b in plan_epoch(encoded, 32, np.random.default_rng(0)))
    shuffled = np.random.default_rng(0).permutation(1024).reshape(-1, 32)
    assert padded < 1.25 * lengths.sum()
    assert sum(32 * lengths[b].max() for b in shuffled) > 1.7 * lengths.sum()


def test_batches_of_many_targets_hold_about_the_asked_number() -> None:
    encoded = ragged([30] * 40, [8] * 40)
    assert {encoded.targets[b].sum() for b in plan_epoch(encoded, 64, np.random.default_rng(0))} == {64}


@settings(max_examples=40)
@given(sizes, st.integers(1, 8))
def test_shares_cover_a_batch_and_balance(lengths: list[int], parts: int) -> None:
    size = np.array(lengths)
    batch = np.arange(len(size))
    shares = split_by_tokens(batch, size, parts)
    assert len(shares) == parts
    assert sorted(np.concatenate(shares).tolist()) == batch.tolist()
    loads = [size[s].sum() for s in shares]
    assert max(loads) - min(loads) <= size.max()


@settings(max_examples=40)
@given(sizes, st.integers(1, 200))
def test_token_budget_is_kept(lengths: list[int], budget: int) -> None:
    encoded = ragged(lengths)
    batches = token_budget_batches(encoded, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * encoded.lengths[b].max() <= budget for b in batches)


def test_collate_pads_on_the_right_and_finds_the_answers() -> None:
    encoded = ragged([3, 5, 2], [1, 2, 1])
    batch = collate(encoded, np.array([2, 1]))
    assert batch.mask is None
    assert batch.tokens.tolist() == [[18, 19, 0, 0, 0], [13, 14, 15, 16, 17]]
    assert batch.position[0].tolist() == [2, 3, 4, 5, 6]
    assert batch.answer.tolist() == [[0, 1], [1, 4], [1, 3]]
    assert batch.index.tolist() == [3, 1, 2]
    assert batch.label.tolist() == [1.0, 1.0, 0.0]


def test_mask_follows_the_three_rules() -> None:
    plain = ragged([6], [1])
    segment = np.array([0, 0, 1, 1, 0, 2], np.int32)
    window = np.array([0, 0, 0, 2, 1, 1], np.int32)
    encoded = Encoded(**{**plain.__dict__, "segment": segment, "window": window})
    mask = collate(encoded, np.array([0])).mask
    assert mask is not None
    seen = mask[0, 0].int().tolist()
    assert [row[:2] for row in seen] == [[1, 1]] * 6  # the prefix
    assert [row[2:] for row in seen] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 1],
    ]


def test_masked_padding_sees_itself_so_that_no_softmax_is_empty() -> None:
    plain = ragged([2, 4])
    encoded = Encoded(**{**plain.__dict__, "segment": np.ones(6, np.int32)})
    mask = collate(encoded, np.array([0, 1])).mask
    assert mask is not None
    assert bool(mask.any(-1).all())


@pytest.mark.parametrize("batch", [1, 3])
def test_positions_count_from_the_prefix(batch: int) -> None:
    encoded = ragged([4] * batch)
    assert (collate(encoded, np.arange(batch)).position == np.arange(2, 6)).all()


def test_weights_halve_with_age_and_follow_their_targets() -> None:
    rows = ragged([3, 4, 5, 6], [1, 2, 1, 1])  # rows 0, 3, 6, 9, 12
    weighted = by_age(rows, 6.0)
    assert weighted.weight is not None
    np.testing.assert_allclose(weighted.weight.mean(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(weighted.weight[2:] / weighted.weight[:3], 2.0, rtol=1e-6)
    batch = collate(weighted, np.array([1, 3])).to("cpu")
    assert batch.weight is not None
    np.testing.assert_array_equal(batch.weight, weighted.weight[batch.index])
    both = join([weighted, weighted])
    np.testing.assert_array_equal(both.weight, np.tile(weighted.weight, 2))
    assert collate(rows, np.array([0])).weight is None
