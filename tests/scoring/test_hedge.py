"""The hedge: its regret bound holds whatever comes, it never looks ahead, and experts may sleep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsat_ray.errors import LsatError
from lsat_ray.scoring.hedge import hedge, log_loss

Rounds = tuple[list[dict[str, np.ndarray]], list[np.ndarray]]


@st.composite
def rounds(draw: st.DrawFn, most_rows: int = 6) -> Rounds:
    """Periods of unequal length, experts of any quality, each missing now and then; labels chosen to hurt or not."""
    names = [f"m{i}" for i in range(draw(st.integers(1, 6)))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sharpness = draw(st.sampled_from([0.3, 1.0, 5.0, 30.0]))
    probability, label = [], []
    for _ in range(draw(st.integers(1, 12))):
        rows = draw(st.integers(1, most_rows))
        awake = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        truth = np.full(rows, draw(st.integers(0, 1))) if draw(st.booleans()) else rng.integers(0, 2, rows)
        margins = {n: sharpness * rng.standard_normal(rows) * (1 if draw(st.booleans()) else 3) for n in awake}
        probability.append({n: 1 / (1 + np.exp(-m)) for n, m in margins.items()})
        label.append(truth)
    return probability, label


def regrets(probability: list[dict[str, np.ndarray]], label: list[np.ndarray], eta: float) -> dict[str, float]:
    """Sum of the mixture's loss minus the expert's, over the periods where the expert is there."""
    mixture = hedge(probability, label, eta).mixture
    found: dict[str, float] = {}
    for mixed, experts, truth in zip(mixture, probability, label, strict=True):
        for name, p in experts.items():
            clipped = np.clip(p, 1e-7, 1 - 1e-7)
            found[name] = found.get(name, 0.0) + log_loss(mixed, truth) - log_loss(clipped, truth)
    return found


@settings(max_examples=300)
@given(rounds(), st.sampled_from([0.25, 0.7, 1.0]))
def test_the_regret_against_every_expert_is_bounded(made: Rounds, eta: float) -> None:
    found = regrets(*made, eta)
    assert max(found.values()) <= np.log(len(found)) / eta + 1e-9


@settings(max_examples=150)
@given(rounds(most_rows=1))
def test_with_rounds_of_one_row_the_sum_over_rows_is_within_ln_m_of_the_best(made: Rounds) -> None:
    probability, label = made
    everyone = {n for experts in probability for n in experts}
    whole = [{n: experts.get(n, np.array([0.5])) for n in everyone} for experts in probability]  # nobody sleeps
    mixture = np.concatenate(hedge(whole, label).mixture)
    truth = np.concatenate(label)
    best = min(
        len(truth) * log_loss(np.clip(np.concatenate([e[n] for e in whole]), 1e-7, 1 - 1e-7), truth) for n in everyone
    )
    assert len(truth) * log_loss(mixture, truth) <= best + np.log(len(everyone)) + 1e-9


def test_the_bound_is_reached_by_the_first_period_alone() -> None:
    """Nothing is known of anyone: one expert of four is right on all rows, so N rows cost N ln 4, not ln 4."""
    rows = 50
    experts = {f"m{i}": np.full(rows, 1.0 if i == 0 else 0.0) for i in range(4)}
    truth = np.ones(rows)
    assert regrets([experts], [truth], 1.0)["m0"] == pytest.approx(np.log(4), abs=1e-5)


@settings(max_examples=100)
@given(rounds(), st.integers(0, 11))
def test_a_mixture_never_depends_on_labels_of_its_own_or_a_later_period(made: Rounds, at: int) -> None:
    probability, label = made
    poisoned = [truth if t < at else 1 - truth for t, truth in enumerate(label)]
    before, after = hedge(probability, label), hedge(probability, poisoned)
    for t in range(min(at + 1, len(label))):
        assert np.array_equal(before.mixture[t], after.mixture[t])
    online = hedge(probability[: at + 1], label[:at])  # what a replay at that period can compute
    assert np.array_equal(online.mixture[-1], before.mixture[: at + 1][-1])


def test_weight_goes_to_the_better_expert_and_back_when_it_fails() -> None:
    rng = np.random.default_rng(0)
    label = [rng.integers(0, 2, 200) for _ in range(12)]
    good, bad = ([np.where(t == 1, p, 1 - p) for t in label] for p in (0.8, 0.3))
    probability = [{"a": (good if t < 6 else bad)[t], "b": (bad if t < 6 else good)[t]} for t in range(12)]
    weights = [w["a"] for w in hedge(probability, label).weights]
    assert weights[0] == 0.5 and weights[6] > 0.9 and weights[11] < weights[6]


def test_a_newcomer_starts_level_and_a_sleeper_is_charged_the_mixtures_loss() -> None:
    rng = np.random.default_rng(1)
    label = [rng.integers(0, 2, 100) for _ in range(5)]
    right = [np.where(t == 1, 0.7, 0.3) for t in label]
    alone = hedge([{"a": p} for p in right[:3]] + [{"a": right[3], "new": right[3]}], label[:3])
    assert alone.weights[3] == pytest.approx({"a": 0.5, "new": 0.5})  # `a` was the mixture: level
    wrong = [1 - p for p in right]
    both = [{"a": p, "b": q} for p, q in zip(right, wrong, strict=True)]
    away = hedge([*both[:2], {"a": right[2]}], label[:3])
    assert set(away.weights[2]) == {"a"} and away.weights[2]["a"] == 1.0
    back = hedge([both[0], {"a": right[1]}, both[2]], label[:2])
    assert back.weights[2] == pytest.approx(hedge(both[:2], label[:1]).weights[1])  # nothing moved between the two


def test_certain_experts_that_are_wrong_cost_a_bounded_amount() -> None:
    found = hedge([{"sure": np.ones(3), "fair": np.full(3, 0.5)}] * 2, [np.zeros(3)])
    assert np.isfinite(found.mixture[1]).all() and found.weights[1]["fair"] > 0.999


def test_bad_input_names_expert_and_period() -> None:
    half = np.full(2, 0.5)
    with pytest.raises(LsatError, match=r"hedge: mf in period 2 is no P\(like\)"):
        hedge([{"a": half}, {"mf": np.array([0.2, 1.4])}], [np.ones(2)])
    with pytest.raises(LsatError, match="period 1 of 1 needs experts"):
        hedge([{}], [])
    with pytest.raises(LsatError, match="same rows"):
        hedge([{"a": half, "b": np.full(3, 0.5)}], [])
    with pytest.raises(LsatError, match="labels of 0 periods for 2"):
        hedge([{"a": half}] * 2, [])
    with pytest.raises(LsatError, match="3 labels for 2 rows"):
        hedge([{"a": half}], [np.ones(3)])
