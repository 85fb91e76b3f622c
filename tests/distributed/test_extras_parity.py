"""Penalties (ZeRO 0 to 3) and frozen adapters (0 to 2) under DeepSpeed: plain torch's adapter, with two workers."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.adapters.spec import AdapterSpec, Frozen, Regulariser
from lsat_ray.backbone.load import load
from lsat_ray.config import EngineConfig, Experiment, LoraSettings, Recipe
from lsat_ray.data.periods import Periods, Slice
from lsat_ray.errors import LsatError
from lsat_ray.prompts.encode import Encoder
from lsat_ray.training.fit import Fitted, TorchEngine, fit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]


class Case(NamedTuple):
    spec: AdapterSpec
    initial: Adapter | None
    frozen: list[Adapter]


def fit_all(
    experiment: Experiment, periods: Periods, folder: Path, engine: Any, micro: int, cumulative: bool
) -> dict[str, Fitted]:
    """Fit the same cases, whatever the engine."""
    torch.set_num_threads(1)
    backbone = load(experiment.backbone, folder)
    model = AdaptedBackbone(backbone, LoraSettings(rank=4, alpha=8))
    encoder = Encoder(backbone.tokenizer, experiment.prompt, periods.titles)
    train, validation = encoder(periods.rows(1, "train")), encoder(periods.rows(1, "validation"))
    past = []
    for seed in (1, 2):
        model.reset(seed)
        generator = torch.Generator().manual_seed(seed)
        state = {k: v + 0.2 * torch.randn(v.shape, generator=generator) for k, v in model.snapshot().state.items()}
        memory = {k.removesuffix(".lora_A.weight"): torch.eye(v.shape[1])[:3] for k, v in state.items() if "_A." in k}
        past.append(Adapter(state, 4, 8.0, memory))

    def spec(**changes: Any) -> AdapterSpec:
        rows = (Slice(1, "train"),), (Slice(1, "validation"),)
        recipe = Recipe(lr=5e-3, batch_size=16, epochs=1)
        return AdapterSpec("b", "d", *rows, experiment.prompt, model.lora, recipe, **({"seed": 1} | changes))

    parents = (spec(seed=8), spec(seed=9))
    cases = {}
    for kind in ("sum", "sd", "orthogonal", "inf") if cumulative else ():
        cases[f"frozen-{kind}"] = Case(spec(frozen=Frozen(parents, kind)), None, past)  # type: ignore[arg-type]
    for kind in ("softmax-kl", "l2", "orthogonal"):
        held = spec(init=parents[0], regulariser=Regulariser(kind, 5.0))  # type: ignore[arg-type]
        cases[kind] = Case(held, past[0], [])
    settings = EngineConfig(kind="deepspeed", micro_batches=micro)
    return {
        name: fit(c.spec, model, train, validation, engine, settings, c.initial, frozen=c.frozen)
        for name, c in cases.items()
    }


def worker(rank: int, stage: int, port: int, experiment: Experiment, periods: Periods, folder: Path, out: Path) -> None:
    """Fit as one of two ranks; rank 0 writes."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    os.environ.update(address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"})
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    from lsat_ray.distributed.deepspeed_engine import DeepSpeedEngine

    fitted = fit_all(experiment, periods, folder, DeepSpeedEngine(stage), 2, cumulative=stage < 3)
    if stage == 3:
        with pytest.raises(LsatError, match="stage 3 does not carry"):
            fit_all(experiment, periods, folder, DeepSpeedEngine(stage), 2, cumulative=True)
    if rank == 0:
        torch.save({n: (f.adapter.state, torch.from_numpy(f.margin), f.penalty) for n, f in fitted.items()}, out)
    torch.distributed.barrier()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_gives_plain_torchs_adapter(
    stage: int, tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    plain = fit_all(tiny_experiment, tiny_periods, tiny_backbone_folder, TorchEngine(), 1, cumulative=stage < 3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "fitted.pt"
    args = (stage, port, tiny_experiment, tiny_periods, tiny_backbone_folder, out)
    torch.multiprocessing.spawn(worker, args, nprocs=2)
    for name, (state, margin, pulls) in torch.load(out, weights_only=True).items():
        for key, value in plain[name].adapter.state.items():
            torch.testing.assert_close(state[key], value, rtol=1e-3, atol=5e-5, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(margin, torch.from_numpy(plain[name].margin), rtol=1e-3, atol=1e-4)
        assert [step for step, *_ in pulls] == [step for step, *_ in plain[name].penalty]
        for (_, *got), (_, *wanted) in zip(pulls, plain[name].penalty, strict=True):
            assert got == pytest.approx(wanted, rel=1e-3)
