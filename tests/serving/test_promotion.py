"""The rule of promotion: lower log-loss, and an interval over users that holds no zero."""

from __future__ import annotations

import numpy as np
import pytest

from lsat_ray.errors import LsatError
from lsat_ray.evaluation.metrics import summarise
from lsat_ray.evaluation.significance import Key, Scored
from lsat_ray.serving.promotion import judge, prequential


def scored(rng: np.random.Generator, users: int, rows: int, shift: float, periods: int = 3) -> list[dict[Key, Scored]]:
    """Return a champion and a candidate whose margins on a user's rows are better by `shift` plus the user's luck."""
    luck = rng.normal(0, 0.5, users)
    champion, candidate = {}, {}
    for t in range(1, periods + 1):
        user = rng.integers(0, users, rows)
        label = rng.integers(0, 2, rows)
        margin = rng.normal(0, 1, rows)
        better = margin + (2 * label - 1) * (shift + luck[user])
        row = np.arange(rows)
        for found, values in ((champion, margin), (candidate, better)):
            found[Key(0, t)] = Scored(row, user, label, 1 / (1 + np.exp(-values)))
    return [champion, candidate]


def test_a_better_candidate_is_promoted_and_a_worse_or_equal_one_is_not(rng: np.random.Generator) -> None:
    champion, candidate = scored(rng, 200, 2000, 0.5)
    verdict = judge(champion, candidate)
    assert verdict.better and verdict.low < verdict.gain < verdict.high
    assert verdict.words().startswith("better: prequential log-loss lower by +.")
    assert (verdict.periods, verdict.users) == (3, 200)
    back = judge(candidate, champion)
    assert not back.better and back.words().startswith("worse")
    assert (back.gain, back.low, back.high) == pytest.approx((-verdict.gain, -verdict.high, -verdict.low))
    same = judge(champion, champion)
    assert not same.better and same.gain == same.low == same.high == 0.0


def test_many_rows_of_few_users_are_no_evidence(rng: np.random.Generator) -> None:
    """A bootstrap by rows would take 20,000 rows of eight users for 20,000 opinions."""
    promoted = 0
    for seed in range(20):
        champion, candidate = scored(np.random.default_rng(seed), 8, 20_000, -0.03, 1)
        promoted += judge(champion, candidate, resamples=2000).better
    assert promoted <= 4


def test_the_gain_is_the_mean_over_periods_of_the_difference_of_log_loss(rng: np.random.Generator) -> None:
    champion, candidate = scored(rng, 30, 100, 0.2)

    def loss(s: Scored) -> float:
        return -float(np.mean(np.log(np.where(s.label == 1, s.score, 1 - s.score))))

    expected = np.mean([loss(champion[key]) - loss(candidate[key]) for key in champion])
    assert judge(champion, candidate).gain == pytest.approx(expected)


def test_the_ledger_tells_the_log_losses_that_the_rule_compares(rng: np.random.Generator) -> None:
    pair = dict(zip("ab", scored(rng, 30, 100, 0.2), strict=True))
    records = [
        {"seed": key.seed, "strategy": name, "period": key.period, "stage": "score"}
        | summarise(s.label, s.score, s.user, True)
        for name, runs in pair.items()
        for key, s in runs.items()
    ]
    means, periods = prequential(records, ["a", "b"])
    assert means["a"] - means["b"] == pytest.approx(judge(pair["a"], pair["b"]).gain)
    assert periods == 3
    alone = [r for r in records if (r["strategy"], r["period"]) != ("b", 2)]  # b was not scored on period 2
    means, periods = prequential(alone, ["a", "b"])
    assert means["a"] == pytest.approx(np.mean([r["log_loss"] for r in alone if r["strategy"] == "a"][::2]))
    assert periods == 2
    uncalibrated = {"seed": 0, "strategy": "c", "period": 1, "stage": "score", "log_loss": float("nan")}
    assert prequential([*records, uncalibrated], ["a", "c"]) == ({}, 0)


def test_what_cannot_be_compared_is_refused(rng: np.random.Generator) -> None:
    champion, candidate = scored(rng, 30, 100, 0.2)
    with pytest.raises(LsatError, match="share no tested period"):
        judge(champion, {Key(0, 9): candidate[Key(0, 1)]})
    with pytest.raises(LsatError, match="period 1: the two scored different samples"):
        judge(champion, {Key(0, 1): candidate[Key(0, 1)].only(np.arange(100) > 0)})
    one = candidate[Key(0, 1)]
    with pytest.raises(LsatError, match="no P"):
        judge(champion, {Key(0, 1): Scored(one.row, one.user, one.label, one.score + 3)})
