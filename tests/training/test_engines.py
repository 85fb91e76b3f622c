"""An adapter does not depend on who computed it: one process or two, plain torch or DeepSpeed, and how work is cut."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from workbench import Workbench, make_workbench, randomise

from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.spec import AdapterSpec, Frozen, Regulariser
from lsat_ray.config import EngineConfig, Experiment, LoraSettings, Recipe
from lsat_ray.data.periods import Periods
from lsat_ray.training.engine import DataParallel, Engine, TorchEngine
from lsat_ray.training.fit import Fitted, fit

Inputs = tuple[Experiment, Periods, Path]

RECIPE = Recipe(lr=1e-4, batch_size=16, epochs=2, clip=1e9)
"""AdamW's steps are the sign of a gradient at first, so that the rounding of a tiny one moves a weight by a share of
the learning rate; this rate keeps that below the tolerance, and what is wrong by a factor far above it."""
TOLERANCE = 1e-6

DROPPING = LoraSettings(rank=4, alpha=8, dropout=0.3)


def kinds(bench: Workbench) -> dict[str, Callable[[], tuple[AdapterSpec, Adapter | None, list[Adapter]]]]:
    """Return a spec with its inputs for every penalty and every frozen kind, and a plain one."""
    randomise(bench.model, 5)
    now = bench.model.snapshot()
    past = [replace(now, memory={m: torch.eye(now.pair(m)[0].shape[1])[:3] for m in now.modules()})]
    parent = bench.spec(seed=9)
    plain = bench.spec(recipe=RECIPE)
    cases: dict[str, Any] = {"plain": lambda: (plain, None, [])}
    for kind in ("softmax-kl", "l2", "orthogonal"):
        held = replace(plain, init=parent, regulariser=Regulariser(kind, 20.0))  # type: ignore[arg-type]
        cases[kind] = lambda held=held: (held, past[0], [])
    for kind in ("sum", "sd", "orthogonal", "inf"):
        link = replace(plain, frozen=Frozen((parent,), kind, weight=5.0))  # type: ignore[arg-type]
        cases[f"frozen-{kind}"] = lambda link=link: (link, None, past)
    return cases


def fit_kinds(inputs: Inputs, engine: Engine, settings: EngineConfig, names: list[str]) -> dict[str, Fitted]:
    """Fit the kinds of adapters that are named, with dropout on LoRA's inputs."""
    torch.set_num_threads(1)
    bench = make_workbench(*inputs, lora=DROPPING, checkpointing=settings.checkpointing)
    bench.model.packing = settings.packing
    found = {}
    for name, make in kinds(bench).items():
        if name in names:
            spec, initial, frozen = make()
            found[name] = fit(
                spec, bench.model, bench.train, bench.validation, engine, settings, initial, frozen=frozen
            )
    return found


def margins_of(found: dict[str, Fitted]) -> dict[str, np.ndarray]:
    """Return the margins on the validation rows."""
    return {name: one.margin for name, one in found.items()}


def states(found: dict[str, Fitted]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights alone."""
    return {name: one.adapter.state for name, one in found.items()}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest absolute difference of a weight."""
    assert one.keys() == other.keys()
    return max(float((v - other[k]).abs().max()) for k, v in one.items())


ALL = ["plain", "softmax-kl", "l2", "orthogonal", "frozen-sum", "frozen-sd", "frozen-orthogonal", "frozen-inf"]


def rank_of_two(rank: int, port: int, inputs: Inputs, out: Path) -> None:
    """Fit every kind as one of two ranks, once per engine; rank 0 writes."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    os.environ.update(address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"})
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    plain = fit_kinds(inputs, DataParallel(), EngineConfig(kind="torch", workers=2, micro_batches=2), ALL)
    from lsat_ray.distributed.deepspeed_engine import DeepSpeedEngine

    sharded = fit_kinds(inputs, DeepSpeedEngine(1), EngineConfig(workers=2, micro_batches=2), ALL)
    if rank == 0:
        torch.save({"data-parallel": states(plain), "deepspeed": states(sharded)}, out)
        np.savez(out.with_suffix(".npz"), **margins_of(plain))
    torch.distributed.barrier()


@pytest.fixture
def inputs(tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path) -> Inputs:
    return tiny_experiment, tiny_periods, tiny_backbone_folder


def test_two_processes_give_the_adapter_of_one(inputs: Inputs, tmp_path: Path) -> None:
    """Penalties count once, whatever engine and number of workers, and so does every dropout mask."""
    one = states(fit_kinds(inputs, TorchEngine(), EngineConfig(kind="torch"), ALL))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(rank_of_two, (port, inputs, tmp_path / "states.pt"), nprocs=2)
    two = torch.load(tmp_path / "states.pt", weights_only=True)
    for engine, found in two.items():
        apart = {name: difference(one[name], found[name]) for name in ALL}
        assert apart == pytest.approx(dict.fromkeys(ALL, 0.0), abs=TOLERANCE), engine
    settings = EngineConfig(kind="torch", workers=2, micro_batches=2)
    both = fit_kinds(inputs, TorchEngine(2), settings, ALL)
    plain = two["data-parallel"]
    assert {name: difference(states(both)[name], plain[name]) for name in ALL} == dict.fromkeys(ALL, 0.0)
    margin = np.load(tmp_path / "states.npz")
    assert all(np.array_equal(one, margin[name]) for name, one in margins_of(both).items())


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batches": 2},
        {"micro_batches": 5},
        {"packing": True},
        {"checkpointing": True},
        {"packing": True, "checkpointing": True, "micro_batches": 3},
        {"batch_tokens": 64},
    ],
    ids=str,
)
def test_how_the_work_is_cut_leaves_no_trace(inputs: Inputs, changes: dict[str, Any]) -> None:
    names = ["plain", "l2", "frozen-inf"]
    usual = states(fit_kinds(inputs, TorchEngine(), EngineConfig(kind="torch"), names))
    other = states(fit_kinds(inputs, TorchEngine(), EngineConfig(kind="torch", **changes), names))
    assert {n: difference(usual[n], other[n]) for n in names} == pytest.approx(dict.fromkeys(names, 0.0), abs=TOLERANCE)


def test_dropout_is_part_of_the_adapter(bench: Workbench, inputs: Inputs) -> None:
    """So that the equalities above say something."""
    plain = fit(bench.spec(recipe=RECIPE), bench.model, bench.train, bench.validation, TorchEngine(), EngineConfig())
    dropped = fit_kinds(inputs, TorchEngine(), EngineConfig(kind="torch"), ["plain"])["plain"]
    assert difference(plain.adapter.state, dropped.adapter.state) > 30 * TOLERANCE
