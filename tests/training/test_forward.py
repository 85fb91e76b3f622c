"""Our forward pass against the plain padded computation of transformers and PEFT: same loss, same gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from workbench import Workbench, make_workbench, randomise

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.config import LoraSettings
from lsat_ray.prompts.batch import Encoded, collate, split_by_tokens

ROWS = np.array([3, 0, 11, 7, 20, 5])


def plain(bench: Workbench, rows: np.ndarray, side: str) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Return loss, LoRA gradients and answer logits of the computation that a user would write."""
    samples = bench.periods.rows(1, "train").take(rows)
    prompts = [torch.tensor(ids) for ids in bench.encoder.prompt_ids(samples)]
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        at = slice(longest - len(prompt), None) if side == "left" else slice(0, len(prompt))
        ids[i, at], attention[i, at] = prompt, 1
    logits = bench.model.peft(input_ids=ids, attention_mask=attention).logits  # the whole vocabulary
    last = torch.tensor([longest - 1 if side == "left" else len(p) - 1 for p in prompts])
    answers = list(bench.backbone.answers)
    read = logits[torch.arange(len(prompts)), last][:, answers].float()
    loss = functional.cross_entropy(read, torch.from_numpy(samples.label.astype(np.int64)))
    return loss.detach(), gradients(bench.model, loss), read.detach()


def gradients(model: AdaptedBackbone, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradients of a loss in the slot's weights."""
    parameters = model.slot_parameters()
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def ours(model: AdaptedBackbone, encoded: Encoded, rows: np.ndarray, micro: int = 1) -> tuple[Any, Any, torch.Tensor]:
    """Return the same three of our forward, summed over micro-batches, logits in the order of `rows`."""
    total, sums = torch.zeros(()), {k: torch.zeros_like(p) for k, p in model.slot_parameters().items()}
    read = torch.zeros(len(encoded.row), 2)
    for part in split_by_tokens(rows, encoded.lengths, micro):
        batch = collate(encoded, part)
        logits = model(batch)
        loss = functional.cross_entropy(logits, batch.label.long(), reduction="sum") / len(rows)
        for name, value in gradients(model, loss).items():
            sums[name] += value
        total = total + loss.detach()
        read[batch.index] = logits.detach()
    return total, sums, read[rows]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 2e-5) -> None:
    """Assert equality to float tolerance, relative to the tensor's size."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max() + 1e-3))


def unshared(encoded: Encoded) -> Encoded:
    """Return the same sequences with the prefix written out in each."""
    prefix, count = encoded.prefix, len(encoded)
    pieces = [np.concatenate([prefix, encoded.tokens[a:b]]) for a, b in zip(encoded.offsets, encoded.offsets[1:])]  # noqa: B905
    offsets = encoded.offsets + len(prefix) * np.arange(count + 1)
    return dataclasses.replace(
        encoded, prefix=prefix[:0], tokens=np.concatenate(pieces), offsets=offsets, answer=offsets[1:] - 1
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared-prefix", "no-prefix"])
@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_loss_and_gradients_are_those_of_plain_transformers(
    bench: Workbench,
    side: str,
    shared: bool,
    micro: int,
    packing: bool,
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    randomise(bench.model)
    monkeypatch.setattr(bench.model, "packing", packing)
    monkeypatch.setattr(bench.model, "checkpointing", checkpointing)
    loss, grads, logits = plain(bench, ROWS, side)
    encoded = bench.train if shared else unshared(bench.train)
    assert (len(encoded.prefix) > 20) == shared
    mine, own, read = ours(bench.model, encoded, ROWS, micro)
    close(read, logits)
    close(mine, loss)
    assert max(float(g.abs().max()) for g in grads.values()) > 1e-3
    for name, gradient in grads.items():
        close(own[name], gradient, 1e-4)


def test_checkpointing_changes_no_gradient(bench: Workbench, tiny_backbone_folder: Any) -> None:
    randomise(bench.model)
    loss, grads, _ = ours(bench.model, bench.train, ROWS)
    again = make_workbench(bench.experiment, bench.periods, tiny_backbone_folder, checkpointing=True)
    randomise(again.model)
    again.model.train()
    other, own, _ = ours(again.model, again.train, ROWS)
    close(other, loss)
    for name, gradient in grads.items():
        close(own[name], gradient, 1e-4)


def test_checkpointing_keeps_fewer_activations(bench: Workbench, tiny_backbone_folder: Any) -> None:
    def kept(model: AdaptedBackbone, encoded: Encoded) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model.train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(collate(encoded, ROWS))
        return sum(sizes.values())

    again = make_workbench(bench.experiment, bench.periods, tiny_backbone_folder, checkpointing=True)
    assert kept(again.model, unshared(again.train)) < 0.5 * kept(bench.model, unshared(bench.train))


def test_bfloat16_backbone_trains_float32_adapters(bench: Workbench, tiny_backbone_folder: Any) -> None:
    half = make_workbench(bench.experiment, bench.periods, tiny_backbone_folder, dtype="bfloat16")
    randomise(half.model)
    randomise(bench.model)
    assert {p.dtype for p in half.model.slot_parameters().values()} == {torch.float32}
    assert half.backbone.model.get_decoder().layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    loss, grads, logits = ours(half.model, half.train, ROWS)
    reference, expected, exact = ours(bench.model, bench.train, ROWS)
    assert logits.dtype == torch.float32
    assert abs(float(loss - reference)) < 0.02
    for name, gradient in expected.items():
        assert grads[name].dtype == torch.float32
        cosine = functional.cosine_similarity(grads[name].flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.97, name


def test_rows_do_not_see_each_other(bench: Workbench) -> None:
    randomise(bench.model)
    with torch.no_grad():
        alone = [bench.model(collate(bench.train, np.array([r])))[0] for r in ROWS]
        together = bench.model(collate(bench.train, ROWS))
    close(torch.stack(alone), together)


def test_two_rows_of_the_head_are_read_not_the_vocabulary(bench: Workbench) -> None:
    called = []
    bench.backbone.model.get_output_embeddings().register_forward_hook(lambda *_: called.append(1))
    bench.model(collate(bench.train, ROWS))
    assert not called


def test_dropout_is_active_in_training_only(bench: Workbench, tiny_backbone_folder: Any) -> None:
    lora = LoraSettings(rank=4, alpha=8, dropout=0.5)
    other = make_workbench(bench.experiment, bench.periods, tiny_backbone_folder, lora=lora)
    randomise(other.model)
    one, two = (collate(other.train, ROWS, noise=(0, step)) for step in (1, 2))
    with torch.no_grad():
        other.model.train()
        assert torch.equal(other.model(one), other.model(one))
        assert not torch.allclose(other.model(one), other.model(two))
        other.model.eval()
        assert torch.equal(other.model(one), other.model(two))
