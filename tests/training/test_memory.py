"""The memory estimate: what each stage divides, and the choice that follows."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shapes import shape, shipped
from workbench import Workbench

from lsat_ray.backbone import reordered
from lsat_ray.config import EngineConfig, Experiment, PromptConfig, Recipe
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import collate
from lsat_ray.training import memory
from lsat_ray.training.memory import ROOM, check_replica, choose, dressed, estimate, kept, refusal

ENGINE = EngineConfig(workers=4)
RECIPE, PROMPT = Recipe(batch_size=128), PromptConfig(max_tokens=512)


def test_each_stage_divides_what_it_says(bench: Workbench) -> None:
    model = bench.model
    slot = sum(p.numel() for p in model.slot_parameters().values())
    whole = sum(p.numel() for p in model.parameters()) - slot
    plain, one, two, three = (estimate(model, ENGINE, RECIPE, PROMPT, stage) for stage in range(4))
    assert plain.frozen == one.frozen == two.frozen == 4 * whole
    assert [e.trained for e in (plain, one, two, three)] == [16 * slot, 10 * slot, 7 * slot, 4 * slot]
    assert three.frozen < plain.frozen
    assert plain.total == plain.frozen + plain.trained + plain.activations


def test_pieces_and_recomputation_save_activations(bench: Workbench) -> None:
    def activations(**changes: object) -> int:
        return estimate(bench.model, ENGINE.model_copy(update=changes), RECIPE, PROMPT, 0).activations

    assert activations(micro_batches=4) < activations(micro_batches=2) < activations() < activations(workers=2)
    assert activations(checkpointing=True) < activations()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_lowest_stage_that_fits_is_chosen_and_explained(bench: Workbench, stage: int) -> None:
    need = estimate(bench.model, ENGINE, RECIPE, PROMPT, stage).total
    found, why = choose(bench.model, ENGINE, RECIPE, PROMPT, int(need / ROOM) + 1)
    assert found == stage
    assert why.startswith(f"ZeRO stage {stage}: a worker needs about")
    assert (f"stage {stage - 1} would need" in why) == (stage > 0)


def test_where_nothing_fits_the_remedy_is_named(bench: Workbench) -> None:
    found, why = choose(bench.model, ENGINE, RECIPE, PROMPT, 1000)
    assert found == 3
    assert "raise engine.micro_batches or set engine.checkpointing" in why


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_the_estimate_is_above_what_a_step_keeps(bench: Workbench, checkpointing: bool, monkeypatch: Any) -> None:
    """And not by more than a factor of four, the layer apart that a recomputing backward pass holds besides."""
    monkeypatch.setattr(bench.model, "checkpointing", checkpointing)
    rows = np.arange(32)
    tokens = int(bench.train.lengths[rows].max())
    prompt = PROMPT.model_copy(update={"max_tokens": tokens + -(-len(bench.train.prefix) // len(rows))})
    engine = EngineConfig(workers=1, checkpointing=checkpointing)
    need = estimate(bench.model, engine, Recipe(batch_size=len(rows)), prompt, 0).activations
    truth = kept(bench.model, collate(bench.train, rows))
    assert truth < need
    assert checkpointing or need < 4 * truth


def test_copies_in_the_kernels_order_are_counted(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a bfloat16 backbone on a CPU there are two more of each weight, up to what a process holds."""
    half = copy.deepcopy(bench.model).bfloat16()

    def whole() -> int:
        return sum(p.nbytes for n, p in half.named_parameters() if ".lora_" not in n)

    def frozen(gpus: float = 0.0) -> int:
        engine = EngineConfig(workers=1, gpus=gpus)
        return estimate(half, engine, Recipe(), PROMPT, 0).frozen

    assert frozen() == 3 * whole()
    monkeypatch.setattr(reordered, "HELD", 1000)
    assert frozen() == whole() + 1000
    half.to("meta")
    assert frozen(gpus=1.0) == whole()


# A described machine: nothing is loaded, and no GPU is here.

GIB24, GIB80 = 24 * 2**30, 80 * 2**30


@pytest.mark.parametrize("name", ["ml1m_llama7b", "amazon_book_llama7b"])
def test_a_7b_model_on_a_24_gb_card_is_refused_with_ways_out_that_fit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documented command put it there, where four times as much was estimated, and ended out of memory."""
    config = shipped(name, monkeypatch)
    model = dressed(shape("llama7b"), config.lora)
    line = refusal(model, config, GIB24)
    assert line and "\n" not in line
    assert re.match(r"memory: a training worker needs about 5\d\.\d+ GiB .* of 24\.00 GiB; ways out: ", line)
    ways = [re.findall(r"--set (\S+)", way) for way in line.partition("ways out: ")[2].split(", or ")]
    assert ["engine.checkpointing=true"] in ways and len(ways) == 3
    for sets in ways:
        assert refusal(model, shipped(name, monkeypatch, *sets), GIB24) is None, sets
    assert refusal(model, config, GIB80) is None
    assert "a smaller backbone.path" in (refusal(model, config, 2**30) or "")


def gpu(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Describe this machine as one with a GPU of so many bytes."""
    monkeypatch.setattr(memory, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(memory, "size_of", lambda _: size)


def test_a_replica_that_does_not_fit_its_share_is_refused_with_ways_out_that_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only training was estimated; the endpoint ended out of memory after the weights were loaded."""
    config = shipped("ml1m_llama7b", monkeypatch)
    monkeypatch.setattr(memory, "outline", lambda *_: shape("llama7b"))
    gpu(monkeypatch, GIB24)

    def check(tokens: int, gpus: float) -> None:
        check_replica(config.backbone, config.lora, tokens, 64 << 20, tmp_path, gpus)

    check(16384, 1.0)
    check(16384, 0.0)  # it serves on the CPU
    with pytest.raises(LsatError, match=r"memory: a replica needs about 1\d\.\d+ GiB .* of 12\.00 GiB") as half:
        check(16384, 0.5)
    assert "--set serve.gpus=1" in str(half.value)
    with pytest.raises(LsatError, match=r"of 24\.00 GiB; ways out: --set engine\.batch_tokens=") as wide:
        check(100_000, 1.0)
    check(int(re.findall(r"batch_tokens=(\d+)", str(wide.value))[0]), 1.0)


def test_a_gpu_that_is_too_small_is_found_before_a_weight_is_loaded(
    bench: Workbench, tiny_experiment: Experiment, tiny_backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lsat_ray.runs import worker
    from lsat_ray.runs.tasks import Context

    def never(*_: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(worker, "load", never)
    monkeypatch.setattr(memory, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(memory, "available", lambda *_: 100_000)
    context = Context(tiny_experiment, str(tiny_backbone_folder), "", ())
    with pytest.raises(LsatError, match="memory: a training worker needs about"):
        worker.Worker(context, tiny_experiment.engine, never, never, print)  # type: ignore[arg-type]
    monkeypatch.setattr(memory, "available", lambda *_: GIB24)
    with pytest.raises(AssertionError, match="the weights were loaded"):
        worker.Worker(context, tiny_experiment.engine, never, never, print)  # type: ignore[arg-type]
