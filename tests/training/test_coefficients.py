"""Learned merge weights: the forward they are fitted through is the merge that is served, and the fit descends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from workbench import Workbench, randomise

from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.merge import delta_arithmetic, learned_delta
from lsat_ray.prompts.batch import collate
from lsat_ray.scoring.score import score
from lsat_ray.training.coefficients import fit_coefficients
from lsat_ray.training.magnitudes import layers, weighted


@pytest.fixture
def pair(bench: Workbench) -> list[Adapter]:
    made = []
    for seed in (1, 2):
        randomise(bench.model, seed)
        made.append(bench.model.snapshot())
    return made


def loss(bench: Workbench, adapter: Adapter) -> float:
    margin = torch.from_numpy(score(bench.model, adapter, bench.train).astype(np.float64))
    return float(functional.binary_cross_entropy_with_logits(margin, torch.from_numpy(bench.train.label).double()))


def test_weighted_directions_are_the_learned_merge(bench: Workbench, pair: list[Adapter]) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(len(pair[0].modules()), 2, generator=generator)
    merged = score(bench.model, learned_delta(pair, table.T.flatten().tolist()), bench.validation)
    bench.model.wear(delta_arithmetic(pair, (1.0, 1.0)))
    slot = bench.model.peft.active_adapter
    assert list(layers(bench.model, slot)) == pair[0].modules()
    batch = collate(bench.validation, np.arange(len(bench.validation)))
    with torch.no_grad(), weighted(bench.model, slot, lambda: table, [4, 4]):
        logits = bench.model(batch)
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).numpy(), merged[batch.index], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        bare = bench.model(batch)
    assert not torch.allclose(bare, logits)  # the hooks are gone


def test_the_fit_descends_and_repeats(bench: Workbench, pair: list[Adapter]) -> None:
    found = fit_coefficients(bench.model, pair, bench.train, pull=0.0, steps=10)
    assert len(found) == 2 * len(pair[0].modules())
    assert found == fit_coefficients(bench.model, pair, bench.train, pull=0.0, steps=10)
    assert loss(bench, learned_delta(pair, found)) < loss(bench, delta_arithmetic(pair, (0.5, 0.5))) - 1e-3


def test_the_first_step_goes_against_the_slope_of_the_served_merge(bench: Workbench, pair: list[Adapter]) -> None:
    """Adam's first step has the sign of the gradient: compare with differences of the loss of `learned_delta`."""
    found = np.array(fit_coefficients(bench.model, pair, bench.train, pull=0.0, steps=1, lr=0.05))
    checked = 0
    for i in range(len(found)):
        sides = [np.full(len(found), 0.5) for _ in range(2)]
        sides[0][i], sides[1][i] = 0.45, 0.55
        slope = loss(bench, learned_delta(pair, sides[1])) - loss(bench, learned_delta(pair, sides[0]))
        if abs(slope) > 1e-4:
            checked += 1
            assert np.sign(found[i] - 0.5) == -np.sign(slope)
    assert checked >= 4


def test_a_strong_pull_leaves_the_average(bench: Workbench, pair: list[Adapter]) -> None:
    near = np.array(fit_coefficients(bench.model, pair, bench.validation, pull=1000.0, steps=15))
    far = np.array(fit_coefficients(bench.model, pair, bench.validation, pull=0.0, steps=15))
    assert np.abs(near - 0.5).mean() < 0.2 * np.abs(far - 0.5).mean()


def test_no_parameter_is_left_with_a_gradient(bench: Workbench, pair: list[Adapter]) -> None:
    fit_coefficients(bench.model, pair, bench.validation, steps=2)
    assert all(p.grad is None for p in bench.model.parameters())
    bench.model.reset(0)
    assert all(p.requires_grad for p in bench.model.slot_parameters().values())
