"""The choice of merge weights on V_t."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lsat_ray.runs.search import Weighting, best, measure, table

GRID = np.linspace(0, 1, 11)


def ensembles(margins: np.ndarray) -> list[Weighting]:
    """Return LSAT-EN's candidates for two adapters' margins [2, V]."""
    p = 1 / (1 + np.exp(-margins))
    return [Weighting("lsat-en(10)", (a, 1 - a), a * p[0] + (1 - a) * p[1]) for a in GRID]


@given(seed=st.integers(0, 10_000))
def test_what_rounding_can_cost_by_log_loss_is_as_small_as_the_rounding(seed: int) -> None:
    """Whatever is chosen from margins that differ by 1e-6 is as good on V_t up to 1e-5; a step of AUC is 1 / 400."""
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1], 20)
    margin = rng.normal(size=(2, 40)) + label
    reached = [measure(label, c.score) for c in ensembles(margin)]
    shaken = [measure(label, c.score) for c in ensembles(margin + rng.uniform(-1e-6, 1e-6, margin.shape))]
    one, two = best(reached, "log-loss"), best(shaken, "log-loss")
    assert abs(reached[one].log_loss - reached[two].log_loss) < 1e-5


def test_each_rule_takes_its_own_best_and_both_are_in_the_table() -> None:
    label = np.array([0, 0, 1, 1])
    sharp = Weighting("a", (0.0,), np.array([0.01, 0.02, 0.03, 0.04]))  # the order is right, the level is not
    level = Weighting("a", (1.0,), np.array([0.3, 0.6, 0.5, 0.7]))
    reached = [measure(label, c.score) for c in (sharp, level)]
    by_auc = table(0, 3, [sharp, level], reached, "auc")
    by_loss = table(0, 3, [sharp, level], reached, "log-loss")
    assert by_auc["chosen"].tolist() == [True, False] and by_loss["chosen"].tolist() == [False, True]
    assert by_auc["auc"].tolist() == [1.0, 0.75] and (by_auc["log_loss"] > 0).all()


def test_of_one_class_log_loss_decides_under_either_rule() -> None:
    label = np.ones(3, dtype=int)
    reached = [measure(label, np.full(3, p)) for p in (0.2, 0.9)]
    assert best(reached, "auc") == best(reached, "log-loss") == 1
