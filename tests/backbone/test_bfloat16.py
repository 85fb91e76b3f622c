"""A backbone in bfloat16 gives what float32 gives, to the rounding of bfloat16, in every way that it is computed."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from workbench import Workbench, make_workbench, randomise

from lsat_ray.backbone import lean, load, precision
from lsat_ray.backbone.forward import hidden_states
from lsat_ray.config import BackboneConfig, EngineConfig, PromptConfig, Recipe
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded, collate
from lsat_ray.training.engine import DataParallel
from lsat_ray.training.step import gradients

MARGIN = 0.08
"""Largest error of the margins (root mean square) as a share of their spread."""
GRADIENT = 0.08
"""Largest error of the gradient of a LoRA factor as a share of its norm."""
PEER = 1.5
"""Largest error of the margins over that of transformers' and PEFT's own computation in bfloat16."""
LAYOUTS = {
    "exact": PromptConfig(),
    "shared-history": PromptConfig(layout="shared-history", targets=4),
    "stream": PromptConfig(layout="stream", targets=4),
}
Inputs = tuple[Any, Any, Path]


def made(bench: Workbench, folder: Path, dtype: str, layout: str = "exact", checkpointing: bool = False) -> Workbench:
    """Return a workbench in a type and a layout, with an adapter that is not zero."""
    made = make_workbench(
        bench.experiment, bench.periods, folder, LAYOUTS[layout], checkpointing=checkpointing, dtype=dtype
    )
    randomise(made.model)
    made.model.train()
    return made


def computed(bench: Workbench, encoded: Encoded) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return margins and gradients of the first sequences."""
    batch = collate(encoded, np.arange(min(len(encoded), 40)))
    logits = bench.model(batch)
    weights = bench.model.slot_parameters()
    grads = torch.autograd.grad(functional.cross_entropy(logits, batch.label.long()), list(weights.values()))
    return (logits[:, 1] - logits[:, 0]).detach(), dict(zip(weights, grads, strict=True))


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the root mean square error over the spread."""
    return float((found - exact).square().mean().sqrt() / exact.std())


def gradients_agree(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> None:
    """Assert the tolerance for every factor; they are float32."""
    for name, one in exact.items():
        assert found[name].dtype == torch.float32
        assert float((found[name] - one).norm()) < GRADIENT * float(one.norm()), name


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_margins_and_gradients_are_those_of_float32(
    bench: Workbench, tiny_backbone_folder: Path, layout: str, checkpointing: bool, packing: bool
) -> None:
    wide = made(bench, tiny_backbone_folder, "float32", layout)
    half = made(bench, tiny_backbone_folder, "bfloat16", layout, checkpointing)
    half.model.packing = packing
    (margin, found), (exact, right) = computed(half, half.train), computed(wide, wide.train)
    assert off(margin, exact) < MARGIN
    gradients_agree(found, right)


def test_no_more_is_lost_than_by_transformers_and_peft(bench: Workbench, tiny_backbone_folder: Path) -> None:
    wide, half = (made(bench, tiny_backbone_folder, dtype) for dtype in ("float32", "bfloat16"))
    batch = collate(wide.train, np.arange(40))
    with torch.no_grad():
        exact, ours = (m.model(batch) @ torch.tensor([-1.0, 1.0]) for m in (wide, half))
        states = hidden_states(half.model.decoder, batch)[batch.answer[:, 0], batch.answer[:, 1]].float()
        theirs = (states @ half.backbone.head.T + half.backbone.bias) @ torch.tensor([-1.0, 1.0])
    assert off(ours, exact) < PEER * off(theirs, exact)


def test_an_update_too_small_for_its_weight_is_not_lost(bench: Workbench, tiny_backbone_folder: Path) -> None:
    """Added to a weight in bfloat16 it would be rounded away."""
    half = made(bench, tiny_backbone_folder, "bfloat16")
    module = half.model.decoder.layers[0].self_attn.q_proj
    with torch.no_grad():
        module.base_layer.weight.fill_(1.0)
        for part in (module.lora_A["slot"].weight, module.lora_B["slot"].weight):
            part.fill_(0.01)
        x = torch.zeros(2, module.base_layer.in_features, dtype=torch.bfloat16)
        x[0, 0], x[0, 1] = 1.0, -1.0  # the weights cancel
        x[1, 0] = 1.0
        module.lora_A["slot"].weight[:, 1] = 0.0
        update = module.scaling["slot"] * 0.01 * 0.01 * half.model.lora.rank
        torch.testing.assert_close(
            lean.linear(module, x)[0].float(), torch.full((module.out_features,), update), rtol=1e-2, atol=0
        )
        assert torch.equal((module.base_layer.weight + update).to(torch.bfloat16), module.base_layer.weight)


def rank_of_two(rank: int, port: int, bench: Inputs, out: Path) -> None:
    """Compute the gradients of a step as one of two ranks; rank 0 writes what its optimizer sees."""
    torch.set_num_threads(1)
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    half = make_workbench(*bench, dtype="bfloat16")
    randomise(half.model)
    engine = DataParallel()
    engine.begin(half.model, Recipe(clip=1e9), 2)
    gradients(half.model, engine, half.train, np.arange(40), 2)
    seen: dict[str, torch.Tensor] = {}

    def look(*_: Any) -> None:
        seen.update({n: p.grad.clone() for n, p in half.model.slot_parameters().items() if p.grad is not None})

    engine._optimizer.register_step_pre_hook(look)
    engine.step(0.0)
    if rank == 0:
        torch.save(seen, out)
    torch.distributed.barrier()


@pytest.mark.slow
def test_two_workers_with_two_micro_batches_add_up_the_gradients_of_float32(
    bench: Workbench, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    wide = made(bench, tiny_backbone_folder, "float32")
    _, right = computed(wide, wide.train)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inputs = (bench.experiment, bench.periods, tiny_backbone_folder)
    torch.multiprocessing.spawn(rank_of_two, (port, inputs, tmp_path / "grads.pt"), nprocs=2)
    gradients_agree(torch.load(tmp_path / "grads.pt", weights_only=True), right)


@pytest.mark.parametrize(("gain", "dtype"), [(0.2, "float32"), (1.0, "float32"), (2.0, "bfloat16"), (8.0, "bfloat16")])
def test_auto_is_bfloat16_where_its_products_are_faster(
    gain: float, dtype: str, bench: Workbench, tiny_backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the fingerprint is that of the type that was taken."""
    monkeypatch.setattr(precision, "_cpu_gain", lambda: gain)
    auto, named = BackboneConfig(dtype="auto", device="cpu"), BackboneConfig(dtype=dtype, device="cpu")  # type: ignore[arg-type]
    assert load.dtype_of(auto) == dtype
    assert load.fingerprint(tiny_backbone_folder, auto) == load.fingerprint(tiny_backbone_folder, named)
    weights = load.load(auto, tiny_backbone_folder).model.get_decoder().layers[0].mlp.up_proj.weight
    assert weights.dtype == getattr(torch, dtype)
    settled = load.settle(bench.experiment.model_copy(update={"backbone": auto}))
    assert settled.backbone == named
    assert load.settle(settled) is settled


def test_this_machine_says_why() -> None:
    native, why = precision.native_bfloat16(torch.device("cpu"))
    assert torch.backends.cpu.get_cpu_capability() in why
    assert "of the time of a float32 one" in why
    assert load.dtype_of(BackboneConfig(dtype="auto", device="cpu")) == ("bfloat16" if native else "float32")


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_is_asked_for_its_capability(
    capability: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    assert precision.native_bfloat16(torch.device("cuda"))[0] is native


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to ask")
def test_gpus_of_other_machines_cannot_be_asked(bench: Workbench) -> None:
    config = bench.experiment.model_copy(
        update={"backbone": BackboneConfig(dtype="auto"), "engine": EngineConfig(gpus=1)}
    )
    with pytest.raises(LsatError, match=r"backbone\.dtype: auto asks the GPU"):
        load.settle(config)
