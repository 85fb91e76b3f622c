"""The walk by hand gives what transformers' own forward gives, in each architecture that it claims."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from lsat_ray.backbone import lean, packed
from lsat_ray.backbone.forward import answer_states, hidden_states
from lsat_ray.prompts.batch import Batch, Encoded, collate

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 90,
    "max_position_embeddings": 128,
}


def model(architecture: str, **changes: Any) -> Any:
    """Return a random model with random LoRA weights."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**(SHAPE | changes))
    if architecture == "Qwen3":
        config.head_dim = 8
    base = getattr(transformers, f"{architecture}ForCausalLM")(config).requires_grad_(False)
    for name, weight in base.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)
    peft = get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.3)
    return peft


def batch(masked: bool, prefix: int = 7) -> Batch:
    """Return four sequences of unequal length, two of them with two answers."""
    rng = np.random.default_rng(0)
    lengths = [9, 14, 5, 12]
    offsets = np.r_[0, np.cumsum(lengths)]
    sequence = np.array([0, 1, 1, 2, 3, 3])
    answer = np.array([8, 9 + 4, 9 + 13, 23 + 4, 28 + 3, 28 + 9])
    extra: dict[str, Any] = {}
    if masked:
        extra = {
            "segment": rng.integers(0, 3, offsets[-1]).astype(np.int32),
            "window": np.concatenate([np.arange(n) // 3 for n in lengths]).astype(np.int32),
            "position": np.concatenate([rng.integers(0, 40, n) for n in lengths]).astype(np.int32),
        }
    encoded = Encoded(
        prefix=rng.integers(3, 90, prefix).astype(np.int32),
        tokens=rng.integers(3, 90, offsets[-1]).astype(np.int32),
        offsets=offsets,
        answer=answer,
        sequence=sequence,
        row=np.arange(6),
        label=np.array([0, 1, 1, 0, 1, 0], np.uint8),
        **extra,
    )
    return collate(encoded, np.array([2, 0, 3, 1]))


def compare(peft: Any, item: Batch, checkpointing: bool = False, packing: bool = False) -> None:
    """Assert equal states and LoRA gradients."""
    decoder = peft.get_base_model().get_decoder()
    weights = [p for n, p in peft.named_parameters() if ".lora_" in n]
    expected = hidden_states(decoder, item)[item.answer[:, 0], item.answer[:, 1]]
    push = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((expected * push).sum(), weights)
    found = answer_states(decoder, item, checkpointing, packing)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(torch.autograd.grad((found * push).sum(), weights), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("masked", [False, True])
def test_states_and_gradients_are_those_of_transformers(architecture: str, masked: bool) -> None:
    changes = {"sliding_window": None} if architecture == "Mistral" else {}
    peft = model(architecture, **changes)
    assert lean.supports(peft.get_base_model().get_decoder())
    compare(peft, batch(masked))
    compare(peft, batch(masked), checkpointing=True)
    compare(peft, batch(masked, prefix=0))


def test_other_models_take_their_own_forward() -> None:
    assert not lean.supports(model("Mistral", sliding_window=4).get_base_model().get_decoder())
    assert not lean.supports(model("Gemma", head_dim=8).get_base_model().get_decoder())
    eager = model("Llama", attn_implementation="eager")
    assert not lean.supports(eager.get_base_model().get_decoder())
    compare(eager, batch(False))


def test_the_last_layer_works_for_the_answers_alone() -> None:
    peft = model("Llama")
    decoder = peft.get_base_model().get_decoder()
    rows: dict[int, int] = {}
    for number, layer in enumerate(decoder.layers):
        layer.mlp.act_fn.register_forward_hook(lambda _m, x, _y, n=number: rows.__setitem__(n, x[0].shape[0]))
    item = batch(False)
    answer_states(decoder, item)
    assert rows == {0: 7 + 4 * 14, 1: 7 + 4 * 14, 2: 6}


@pytest.mark.parametrize("state", ["disabled", "two-adapters"])
def test_unusual_adapters_are_left_to_peft(state: str) -> None:
    peft = model("Llama")
    decoder = peft.get_base_model().get_decoder()
    if state == "disabled":
        with peft.disable_adapter():
            decoder.eval()
            item = batch(False)
            expected = hidden_states(decoder, item)[item.answer[:, 0], item.answer[:, 1]]
            torch.testing.assert_close(answer_states(decoder, item), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(answer_states(decoder, item), expected, atol=1e-3)
        return
    peft.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"]))
    peft.base_model.set_adapter(["default", "second"])
    compare(peft, batch(True))


def prompts(prefix: int = 7) -> Batch:
    """Return four prompts of unequal length, one answer each, at the end."""
    rng = np.random.default_rng(1)
    lengths = [9, 14, 5, 1]
    offsets = np.r_[0, np.cumsum(lengths)]
    encoded = Encoded(
        prefix=rng.integers(3, 90, prefix).astype(np.int32),
        tokens=rng.integers(3, 90, offsets[-1]).astype(np.int32),
        offsets=offsets,
        answer=offsets[1:] - 1,
        sequence=np.arange(4),
        row=np.arange(4),
        label=np.array([0, 1, 1, 0], np.uint8),
    )
    return collate(encoded, np.array([2, 0, 3, 1]))


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("prefix", [0, 1, 7])
def test_packed_states_and_gradients_are_those_of_transformers(architecture: str, prefix: int) -> None:
    peft, item = model(architecture), prompts(prefix)
    assert packed.fits(item)
    compare(peft, item, packing=True)
    compare(peft, item, checkpointing=True, packing=True)


def test_a_packed_batch_computes_no_padding() -> None:
    peft, item = model("Llama"), prompts()
    decoder = peft.get_base_model().get_decoder()
    rows: list[int] = []
    for layer in decoder.layers:
        layer.mlp.act_fn.register_forward_hook(lambda _m, x, _y: rows.append(x[0].shape[0]))
    answer_states(decoder, item, packing=True)
    assert rows == [7 + 29, 7 + 29, 4]


def test_batches_with_masks_or_several_answers_a_row_are_padded() -> None:
    assert not packed.fits(batch(True))
    assert not packed.fits(batch(False))
    compare(model("Llama"), batch(True), packing=True)
