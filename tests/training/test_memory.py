"""The memory estimate: what each stage divides, and the choice that follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from workbench import Workbench

from lsat_ray.config import EngineConfig, PromptConfig, Recipe
from lsat_ray.prompts.batch import collate
from lsat_ray.training.memory import ROOM, choose, estimate, kept

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
