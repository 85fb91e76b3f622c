"""Beam search: real items only, equal to exhaustive scoring, independent of batching; mixtures of models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scrambled import scramble
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from lsat_ray.config import BackboneConfig, LoraSettings
from lsat_ray.generative import backbone
from lsat_ray.generative.blocks import Blocks
from lsat_ray.generative.encode import encode_histories, encode_targets
from lsat_ray.generative.model import GenerativeModel
from lsat_ray.generative.search import beam_search, score_items
from lsat_ray.generative.trie import Trie
from lsat_ray.prompts.batch import collate

LOOSE = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@LOOSE
@given(seed=st.integers(0, 1000), items=st.integers(1, 12), width=st.integers(1, 6))
def test_only_real_items_come_out_whatever_the_weights(
    model: GenerativeModel, log: Blocks, seed: int, items: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, log.size, (items, 4)).astype(np.int16)
    trie = Trie.build(codes)
    scramble(model, seed)
    rows = rng.choice(len(log.item), 3, replace=False)
    found = beam_search(model, encode_histories(log, np.sort(rows), model.codes, 8), trie, width)
    assert found.leaf.max() < len(trie) and found.leaf.min() >= -1
    for leaves, scores in zip(found.leaf, found.score, strict=True):
        real = leaves[leaves >= 0]
        assert len(set(real)) == len(real) == np.isfinite(scores).sum()
        assert (np.diff(scores[: len(real)]) <= 0).all()
        assert len(real) >= min(width, len(trie), 1)


def test_it_equals_exhaustive_scoring(model: GenerativeModel, log: Blocks) -> None:
    trie = Trie.build(log.codes)
    rows = log.rows(2, "test")
    prompts = encode_histories(log, rows, model.codes, 8)
    every = score_items(model, prompts, trie.ids)
    whole = beam_search(model, prompts, trie, width=len(trie))
    assert (whole.certain == len(trie)).all()
    assert np.array_equal(np.sort(whole.leaf, axis=1), np.tile(np.arange(len(trie)), (len(rows), 1)))
    np.testing.assert_allclose(whole.score, np.take_along_axis(every, whole.leaf, axis=1), atol=2e-5)
    assert np.array_equal(whole.leaf[:, :10], np.argsort(-every, axis=1, kind="stable")[:, :10])


def test_certain_results_of_a_narrow_beam_are_the_true_ones(model: GenerativeModel, log: Blocks) -> None:
    trie = Trie.build(log.codes)
    prompts = encode_histories(log, log.rows(1, "test"), model.codes, 8)
    truth = np.argsort(-score_items(model, prompts, trie.ids), axis=1, kind="stable")
    found = beam_search(model, prompts, trie, width=3)
    assert (found.certain > 0).mean() > 0
    assert (found.certain < 3).any(), "some beam was too narrow to be sure; else this shows nothing"
    for row, count in enumerate(found.certain):
        assert np.array_equal(found.leaf[row, :count], truth[row, :count])


def test_exhaustive_scores_are_those_of_the_training_pass(model: GenerativeModel, log: Blocks) -> None:
    rows = log.rows(3, "test")[:5]
    encoded = encode_targets(log, rows, model.codes, 8)
    with torch.no_grad():
        logp = torch.log_softmax(model(collate(encoded, np.arange(len(encoded)))), dim=-1)
    own = logp[torch.arange(len(logp)), torch.from_numpy(encoded.label)].view(len(rows), 4).sum(1).numpy()
    every = score_items(model, encode_histories(log, rows, model.codes, 8), log.codes)
    np.testing.assert_allclose(every[np.arange(len(rows)), log.item[rows]], own, atol=2e-5)


def test_batching_does_not_matter(model: GenerativeModel, log: Blocks) -> None:
    trie = Trie.build(log.codes)
    prompts = encode_histories(log, log.rows(2, "all"), model.codes, 8)
    one, many = (beam_search(model, prompts, trie, 5, batch_tokens=b) for b in (1, 4096))
    assert np.array_equal(one.leaf, many.leaf)
    np.testing.assert_allclose(one.score, many.score, atol=2e-5)


def test_a_mixture_is_the_mean_of_the_probabilities(model: GenerativeModel, log: Blocks) -> None:
    trie = Trie.build(log.codes)
    prompts = encode_histories(log, log.rows(2, "test")[:6], model.codes, 8)
    adapters, scores = [], []
    for seed in (1, 2):
        scramble(model, seed)
        adapters.append(model.snapshot())
        scores.append(score_items(model, prompts, trie.ids))
    expected = np.log(0.3 * np.exp(scores[0]) + 0.7 * np.exp(scores[1]))
    found = beam_search(model, prompts, trie, len(trie), adapters, (0.3, 0.7))
    np.testing.assert_allclose(found.score, np.take_along_axis(expected, found.leaf, axis=1), atol=2e-5)
    alone = beam_search(model, prompts, trie, 10, adapters, (1.0, 0.0))
    model.wear(adapters[0])
    assert np.array_equal(alone.leaf, beam_search(model, prompts, trie, 10).leaf)


@pytest.mark.parametrize("text", [True, False])
def test_any_causal_lm_can_take_the_codes(log: Blocks, tiny_backbone_folder: Path, tmp_path: Path, text: bool) -> None:
    """A Qwen2 with its own words, its codes added, its prompt written around the history."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone_folder)
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=512, tie_word_embeddings=text,
    )  # fmt: skip
    Qwen2ForCausalLM(shape).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = backbone.load(BackboneConfig(device="cpu"), tmp_path, log, text=text)
    model = GenerativeModel(loaded, LoraSettings(rank=2, alpha=4))
    scramble(model, 3)
    trie = Trie.build(log.codes)
    rows = log.rows(2, "test")[:4]
    prompts = encode_histories(log, rows, model.codes, 8)
    written = loaded.tokenizer.decode(prompts.tokens[0][: prompts.length[0]])
    assert ("### Response:" in written) == text and "<a_" in written
    every = score_items(model, prompts, trie.ids)
    found = beam_search(model, prompts, trie, len(trie))
    np.testing.assert_allclose(found.score, np.take_along_axis(every, found.leaf, axis=1), atol=2e-5)
    encoded = encode_targets(log, rows, model.codes, 8)
    with torch.no_grad():
        logp = torch.log_softmax(model(collate(encoded, np.arange(len(encoded)))), dim=-1)
    own = logp[torch.arange(len(logp)), torch.from_numpy(encoded.label)].view(len(rows), 4).sum(1).numpy()
    np.testing.assert_allclose(every[np.arange(len(rows)), trie.leaf[log.item[rows]]], own, atol=2e-5)
