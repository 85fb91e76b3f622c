"""Scores: by row, whatever the batching; probabilities and ensembles."""

from __future__ import annotations

import numpy as np
import pytest
from workbench import Workbench, randomise

from lsat_ray.scoring.model import ensemble, probability
from lsat_ray.scoring.score import margins, score


@pytest.mark.parametrize("budget", [64, 500, 16384])
def test_scores_do_not_depend_on_the_batching(bench: Workbench, budget: int) -> None:
    randomise(bench.model)
    adapter = bench.model.snapshot()
    reference = score(bench.model, adapter, bench.train)
    assert score(bench.model, adapter, bench.train, budget) == pytest.approx(reference, abs=2e-5)
    assert np.std(reference) > 1e-3


def test_scores_follow_the_rows(bench: Workbench) -> None:
    randomise(bench.model)
    adapter = bench.model.snapshot()
    samples = bench.periods.rows(1, "train")
    order = np.random.default_rng(0).permutation(len(samples))
    straight, mixed = bench.encoder(samples), bench.encoder(samples.take(order))
    by_row = dict(zip(straight.row, score(bench.model, adapter, straight), strict=True))
    again = score(bench.model, adapter, mixed)
    assert again == pytest.approx([by_row[r] for r in mixed.row], abs=2e-5)


def test_a_share_scores_its_own_sequences(bench: Workbench) -> None:
    index, value = margins(bench.model, bench.train, "cpu", 16384, np.array([4, 2]))
    whole = margins(bench.model, bench.train, "cpu")
    assert sorted(index) == [2, 4]
    assert dict(zip(index, value, strict=True))[4] == pytest.approx(dict(zip(*whole, strict=True))[4], abs=2e-5)


def test_probability_is_the_softmax_over_two() -> None:
    assert probability(np.array([0.0, np.log(3.0)])) == pytest.approx([0.5, 0.75])


def test_ensemble_averages_probabilities_or_margins() -> None:
    a, b = np.array([0.0, 2.0]), np.array([1.0, -4.0])
    assert ensemble([a, b], [0.3, 0.7]) == pytest.approx(0.3 * probability(a) + 0.7 * probability(b))
    assert ensemble([a, b], [0.3, 0.7], "logit") == pytest.approx(probability(0.3 * a + 0.7 * b))
    for space in ("probability", "logit", "double-softmax"):
        assert ensemble([a, b], [1.0, 0.0], space) == pytest.approx(probability(a))


def test_the_double_softmax_is_that_of_the_lsat_code() -> None:
    """It takes the softmax over the two probabilities, and averages what that says of Yes."""
    a, b = np.array([0.0, 2.0, 5.0]), np.array([1.0, -4.0, 0.1])

    def twice(margin: np.ndarray) -> np.ndarray:
        pair = np.exp(np.stack([1 - probability(margin), probability(margin)]))
        return pair[1] / pair.sum(axis=0)

    mixed = ensemble([a, b], [0.3, 0.7], "double-softmax")
    assert 1 / (1 + np.exp(1 - 2 * mixed)) == pytest.approx(0.3 * twice(a) + 0.7 * twice(b))
    assert ((mixed > 0) & (mixed < 1)).all()
