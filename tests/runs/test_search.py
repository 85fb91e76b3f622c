"""The choice of merge weights on V_t."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsat_ray.config.running import Select
from lsat_ray.runs.search import Weighting, chosen, measure, shares, table

GRID = np.linspace(0, 1, 11)


def ensembles(margins: np.ndarray) -> list[Weighting]:
    """Return LSAT-EN's candidates for two adapters' margins [2, V]."""
    p = 1 / (1 + np.exp(-margins))
    return [Weighting("lsat-en(10)", (a, 1 - a), a * p[0] + (1 - a) * p[1]) for a in GRID]


def alpha(margins: np.ndarray, label: np.ndarray, select: Select) -> float:
    """Return the weight of the first adapter that a rule chooses."""
    candidates = ensembles(margins)
    found = table(0, 3, candidates, [measure(label, c.score) for c in candidates], select)
    (weights,) = chosen(candidates, found["share"].to_numpy()).values()
    assert sum(weights) == pytest.approx(1)
    return weights[0]


@given(seed=st.integers(0, 10_000))
def test_rounding_moves_the_posterior_mean_by_no_more_than_rounding(seed: int) -> None:
    """The highest AUC of 40 rows is a staircase: on another CPU another step of it won, and rows moved by .007."""
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1], 20)
    margin = np.round(rng.normal(size=(2, 40)) + label)  # ties, between which rounding decides
    shaken = margin + rng.uniform(-1e-6, 1e-6, margin.shape)
    assert abs(alpha(margin, label, "posterior-mean") - alpha(shaken, label, "posterior-mean")) < 1e-4


def test_the_posterior_mean_follows_the_likelihood() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 4000)
    good, bad = 2.0 * (2 * label - 1) + rng.normal(size=4000), rng.normal(size=4000)
    assert alpha(np.stack([good, bad]), label, "posterior-mean") > 0.95
    assert alpha(np.stack([good, bad])[:, :6], label[:6], "posterior-mean") < 0.9, "six rows say little"
    log_loss = np.array([measure(label, c.score).log_loss for c in ensembles(np.stack([good, bad]))])
    reached = [measure(label, c.score) for c in ensembles(np.stack([good, bad]))]
    posterior = np.exp(-4000 * (log_loss - log_loss.min()))
    np.testing.assert_allclose(shares(reached, 4000, "posterior-mean"), posterior / posterior.sum())


@pytest.mark.parametrize(("select", "best"), [("auc", 0.0), ("log-loss", 1.0), ("posterior-mean", 1.0)])
def test_each_rule_takes_its_own_best_where_nothing_blends(select: Select, best: float) -> None:
    label = np.array([0, 0, 1, 1])
    sharp = Weighting("a", (0.0,), np.array([0.01, 0.02, 0.03, 0.04]), blend=False)  # the order is right, not the level
    level = Weighting("a", (1.0,), np.array([0.3, 0.6, 0.5, 0.7]), blend=False)
    found = table(0, 3, [sharp, level], [measure(label, c.score) for c in (sharp, level)], select)
    assert found["auc"].tolist() == [1.0, 0.75] and (found["log_loss"] > 0).all()
    assert chosen([sharp, level], found["share"].to_numpy()) == {"a": (best,)}


def test_of_one_class_log_loss_decides_under_either_rule() -> None:
    label = np.ones(3, dtype=int)
    reached = [measure(label, np.full(3, p)) for p in (0.2, 0.9)]
    assert shares(reached, 3, "auc").tolist() == shares(reached, 3, "log-loss").tolist() == [0.0, 1.0]
