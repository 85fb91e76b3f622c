"""The rules that choose among validated weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_fit import SETTINGS, run, same
from test_resume import Death, Mortal, fit_with
from workbench import Workbench

from lsat_ray.adapters.lora import Adapter
from lsat_ray.config import Recipe
from lsat_ray.scoring.score import score
from lsat_ray.training import selection
from lsat_ray.training.checkpoint import Checkpointer
from lsat_ray.training.fit import TorchEngine, fit
from lsat_ray.training.selection import RULES, Candidate

LABEL = np.array([0] * 10 + [1] * 10)


def candidates(aucs: list[float], sizes: list[float] | None = None) -> list[Candidate]:
    """Return candidates with these AUCs (multiples of .1): the last positives rank below all negatives."""
    found = []
    for step, (auc, size) in enumerate(zip(aucs, sizes or [1.0] * len(aucs), strict=True)):
        margin = np.where(np.arange(20) < 10 + round(10 * auc), 1.0, -1.0) * size
        margin[:10] = 0.0
        found.append(Candidate(step + 1, Adapter({"x": torch.tensor([float(step)])}, 1, 1.0), margin))
    return found


@pytest.mark.parametrize(
    ("rule", "aucs", "kept"),
    [
        ("auc", [0.5, 0.9, 0.6, 0.9], (1,)),
        ("smoothed-auc", [0.5, 0.9, 0.2, 0.8, 0.8, 0.8], (4,)),
        ("smoothed-auc", [0.7], (0,)),
        ("one-se", [0.2, 0.7, 0.8, 0.6], (1,)),
        ("one-se", [0.2, 0.8, 0.8], (1,)),
        ("averaged", [0.5, 0.6, 0.9, 0.4], (1, 2, 3)),
        ("averaged", [0.9, 0.6], (0, 1)),
        ("averaged", [0.9], (0,)),
    ],
)
def test_rules(rule: str, aucs: list[float], kept: tuple[int, ...]) -> None:
    assert RULES[rule](candidates(aucs), LABEL) == kept


def test_log_loss_sees_what_the_auc_does_not() -> None:
    found = candidates([0.9, 0.9, 0.8], [1.0, 2.0, 0.1])
    assert RULES["log-loss"](found, LABEL) == (1,)
    assert RULES["auc"](found, LABEL) == (0,)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_rules_have_an_order_with_one_class_and_keep_the_first_of_equals(rule: str) -> None:
    ones = np.ones(20)
    equal = [Candidate(i, Adapter({}, 1, 1.0), np.zeros(20)) for i in range(3)]
    assert RULES[rule](equal, ones)[0] == 0
    rising = [Candidate(i, Adapter({}, 1, 1.0), np.full(20, float(i))) for i in range(5)]
    assert RULES[rule](rising, ones)[-1] == 4


RECIPE = Recipe(lr=1e-2, batch_size=16, epochs=3, eval_every=2, patience=9)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_recipe_names_its_rule(bench: Workbench, rule: str) -> None:
    fitted = run(bench, recipe=RECIPE.model_copy(update={"select": rule}))
    assert np.array_equal(score(bench.model, fitted.adapter, bench.validation), fitted.margin)
    assert fitted.best_step in [step for step, *_ in fitted.history]
    if rule == "log-loss":
        losses = [run(bench, recipe=RECIPE.model_copy(update={"max_steps": s, "eval_every": s})).margin
                  for s, *_ in fitted.history]  # fmt: skip
        values = [selection.measure(rule, bench.validation.label, m) for m in losses]
        assert fitted.best_step == fitted.history[int(np.argmax(values))][0]


def test_averaged_weights_lie_between_their_neighbours(bench: Workbench) -> None:
    single = [run(bench, recipe=RECIPE.model_copy(update={"max_steps": s, "eval_every": s})).adapter for s in (2, 4, 6)]
    recipe = RECIPE.model_copy(update={"select": "averaged", "max_steps": 6})
    fitted = run(bench, recipe=recipe)
    best = int(np.argmax([auc for *_, auc in fitted.history]))
    wanted = selection.mean(single[max(0, best - 1) : best + 2])
    assert all(torch.allclose(v, wanted.state[k], atol=1e-7) for k, v in fitted.adapter.state.items())


@pytest.mark.parametrize("rule", ["averaged", "one-se"])
def test_candidates_survive_an_interruption(bench: Workbench, tmp_path: object, rule: str) -> None:
    recipe = RECIPE.model_copy(update={"select": rule})
    whole = fit_with(bench, TorchEngine(), None, recipe=recipe)
    states = Checkpointer(tmp_path, every=2)  # type: ignore[arg-type]
    with pytest.raises(Death):
        fit_with(bench, Mortal(7), states, recipe=recipe)
    again = fit_with(bench, TorchEngine(), states, recipe=recipe)
    assert same(again.adapter, whole.adapter)
    assert (again.best_step, again.history) == (whole.best_step, whole.history)


def test_an_averaged_sum_is_still_a_sum(bench: Workbench) -> None:
    """SD-LoRA's magnitudes are averaged with the weights; what is published scores as it did in training."""
    from workbench import randomise

    from lsat_ray.adapters.spec import Frozen

    randomise(bench.model, 3)
    past = [bench.model.snapshot()]
    spec = bench.spec(
        frozen=Frozen((bench.spec(seed=9),), "sd"), recipe=RECIPE.model_copy(update={"select": "averaged"})
    )
    fitted = fit(spec, bench.model, bench.train, bench.validation, TorchEngine(), SETTINGS, frozen=past)
    served = score(bench.model, fitted.adapter, bench.validation)
    np.testing.assert_allclose(served, fitted.margin, rtol=1e-4, atol=2e-5)
