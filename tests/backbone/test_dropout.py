"""Dropout masks depend on what is dropped, never on how the work is laid out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_lean import batch, model
from torch import nn

from lsat_ray.backbone.dropout import Dropout, mask, token_keys
from lsat_ray.backbone.forward import answer_states, hidden_states
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded, collate

NOISE = (7, 3)


def rows(count: int = 5, prefix: int = 3) -> Encoded:
    """Return sequences of unequal length with one answer each, at the end."""
    rng = np.random.default_rng(0)
    offsets = np.r_[0, np.cumsum(rng.integers(4, 12, count))]
    return Encoded(
        prefix=rng.integers(3, 90, prefix).astype(np.int32),
        tokens=rng.integers(3, 90, offsets[-1]).astype(np.int32),
        offsets=offsets,
        answer=offsets[1:] - 1,
        sequence=np.arange(count),
        row=np.arange(count),
        label=np.zeros(count, np.uint8),
    )


def keys(encoded: Encoded, sequences: list[int], noise: tuple[int, int] = NOISE) -> tuple[torch.Tensor, dict[int, Any]]:
    """Return the keys of the prefix and of each sequence's own tokens."""
    item = collate(encoded, np.array(sequences), noise=noise)
    found = token_keys(item)
    assert found is not None
    own = found[len(item.prefix) :].view(item.tokens.shape)
    return found[: len(item.prefix)], {s: own[i, : encoded.lengths[s]] for i, s in enumerate(sequences)}


def test_a_token_has_one_key_whatever_batch_it_is_in() -> None:
    encoded = rows()
    prefix, whole = keys(encoded, [0, 1, 2, 3, 4])
    for part in ([3, 1], [2], [4, 0]):
        again, few = keys(encoded, part)
        assert torch.equal(prefix, again)
        assert all(torch.equal(whole[s], k) for s, k in few.items())


def test_no_two_tokens_steps_or_seeds_share_a_key() -> None:
    encoded = rows()
    found = torch.cat([torch.cat([p, *w.values()]) for p, w in (keys(encoded, [0, 1, 2, 3, 4], n) for n in
                                                              ((7, 3), (7, 4), (8, 3), (3, 7)))])  # fmt: skip
    assert len(found.unique()) == len(found) == 4 * (3 + len(encoded.tokens))


def test_masks_are_fair_coins() -> None:
    encoded = rows(200)
    found = token_keys(collate(encoded, np.arange(200), noise=NOISE))
    assert found is not None
    one, other = mask(found, 0, 64, 0.3), mask(found, 1, 64, 0.3)
    assert mask(found, 0, 64, 0.0).sum() == 0
    error = 4 * (0.3 * 0.7 / one.numel()) ** 0.5
    assert abs(one.float().mean() - 0.3) < error
    assert abs((one & other).float().mean() - 0.09) < error  # no module follows another
    assert abs((one[1:] & one[:-1]).float().mean() - 0.09) < error  # nor a token the one before
    assert abs((one[:, 1:] & one[:, :-1]).float().mean() - 0.09) < error
    assert (one.float().mean(0) - 0.3).abs().max() < 5 * (0.21 / len(found)) ** 0.5


def splitmix(value: int) -> int:
    """Return SplitMix64's step in Python's unbounded integers."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def test_masks_are_the_hash_that_they_claim_to_be() -> None:
    """Overflow, shifts of negative numbers and casts behave on this machine; the masks are those of every other."""
    encoded, module, p = rows(2), 5, 0.3
    found = token_keys(collate(encoded, np.array([1, 0]), noise=NOISE))
    assert found is not None
    step = splitmix(splitmix(NOISE[0]) + NOISE[1])
    places = [(-1, i) for i in range(len(encoded.prefix))]
    places += [(s, i) for s in (1, 0) for i in range(encoded.lengths.max())]
    wanted = [splitmix(splitmix((step + s) % 2**64) + i) for s, i in places]
    assert [k % 2**64 for k in found.tolist()] == wanted

    def dropped(key: int, feature: int) -> bool:
        value = (key + splitmix(splitmix(module) + feature)) % 2**32
        value = (value ^ value >> 16) * 0x7FEB352D % 2**32
        value = (value ^ value >> 15) * 0x846CA68B % 2**32
        value ^= value >> 16
        return (value + 2**31) % 2**32 < round(p * 2**32)

    assert mask(found, module, 9, p).tolist() == [[dropped(k, j) for j in range(9)] for k in wanted]


def test_dropout_keeps_the_mean_and_is_silent_outside_training() -> None:
    layer = Dropout(0.25, 0)
    x = torch.ones(400, 32)
    with pytest.raises(LsatError, match="noise"):
        layer(x)
    layer.keys = torch.arange(400) * 7919
    assert abs(layer(x).mean() - 1.0) < 0.02
    assert layer(x).unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(layer.eval()(x), x)


def dropping(architecture: str, **changes: Any) -> Any:
    """Return a model with LoRA on three modules, dropout on their inputs, in training."""
    peft = model(architecture, **changes)
    layers = [m for m in peft.modules() if hasattr(m, "lora_dropout")]
    for number, layer in enumerate(layers):
        layer.lora_dropout["default"] = Dropout(0.4, number)
    return peft.train()


def results(peft: Any, item: Any, **options: Any) -> list[torch.Tensor]:
    """Return the states at the answers and the LoRA gradients of a fixed function of them."""
    decoder = peft.get_base_model().get_decoder()
    if options.pop("own", False):
        states = hidden_states(decoder, item, **options)[item.answer[:, 0], item.answer[:, 1]]
    else:
        states = answer_states(decoder, item, **options)
    push = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    return [states, *torch.autograd.grad((states * push).sum(), [p for n, p in peft.named_parameters() if "lora" in n])]


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3"])
@pytest.mark.parametrize("masked", [False, True])
def test_every_forward_pass_drops_the_same(architecture: str, masked: bool) -> None:
    from dataclasses import replace

    peft, item = dropping(architecture), replace(batch(masked), noise=NOISE)
    if not masked:
        item = collate(rows(), np.array([2, 0, 4, 1]), noise=NOISE)
    wanted = results(peft, item, own=True)
    ways: list[dict[str, Any]] = [{"own": True, "share_prefix": False}]
    ways += [{"checkpointing": c, "packing": p} for c in (False, True) for p in (False, True)]
    for way in ways:
        for found, right in zip(results(peft, item, **way), wanted, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4 * float(right.detach().abs().max()))
    peft.eval()
    assert not torch.allclose(results(peft, item)[0], wanted[0], atol=1e-3)


def test_other_forwards_drop_the_same_when_they_recompute() -> None:
    """A model that is not walked by hand, with transformers' own activation checkpointing."""
    item = collate(rows(), np.array([2, 0, 4, 1]), noise=NOISE)
    wanted = results(dropping("Llama"), item)
    other = dropping("Llama", attn_implementation="eager")
    other.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    for found, right in zip(results(other, item, checkpointing=True), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4 * float(right.detach().abs().max()))


def test_a_frozen_backbone_drops_nothing_of_its_own(tiny_backbone_folder: Any, tiny_experiment: Any) -> None:
    """transformers' own dropout draws from a generator, whose course depends on the layout of work."""
    from lsat_ray.adapters.lora import AdaptedBackbone
    from lsat_ray.backbone import load
    from lsat_ray.config import LoraSettings

    config = tiny_experiment.backbone.model_copy(update={"attention": "eager"})
    backbone = load.load(config, tiny_backbone_folder)
    for layer in backbone.model.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.5
    backbone.model.get_decoder().extra = nn.Dropout(0.5)
    adapted = AdaptedBackbone(backbone, LoraSettings(rank=4)).train()
    item = collate(rows(), np.array([2, 0, 4, 1]))
    with torch.no_grad():
        assert torch.equal(adapted(item), adapted(item))
    assert backbone.model.get_decoder().extra.p == 0.0
