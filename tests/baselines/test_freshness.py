"""How fresh the rivals' counts are: none, up to the model's own last period, or up to the scored row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import rivals
import torch

from lsat_ray import config
from lsat_ray.baselines import classical
from lsat_ray.baselines.features import HISTORY, STREAM, side_table, snapshots
from lsat_ray.baselines.naive import item_rate_by_period, naive_scores
from lsat_ray.baselines.spec import SIDES
from lsat_ray.config import ClassicalRecipe
from lsat_ray.data.periods import Periods
from lsat_ray.evaluation.metrics import auc

RECIPE = ClassicalRecipe(width=8, epochs=2, warmup_rows=100)
BY_HISTORY = [m for m in classical.MODELS if m != "din"]  # din reads its user's labels further back than a history
COUNTS = slice(len(HISTORY), len(HISTORY + STREAM))


def moods(rng: Any, user: Any, item: Any, history: Any, liked: Any) -> np.ndarray:
    """Half the items are liked; which half is drawn anew in every period."""
    return rng.random(len(user)) < np.where(rng.random(1000)[item] < 0.5, 0.15, 0.85)


@pytest.fixture(scope="module")
def periods(plant: Any) -> Periods:
    torch.set_num_threads(1)
    made = plant(moods, periods=5, rows=600)
    return replace(made, borders=made.borders[1:], fingerprint="moods")  # 600 rows before D_1


def flipped(periods: Periods, since: int, until: int | None = None) -> Periods:
    """Return the stream with the targets' labels turned over from a row on; histories stay."""
    label = periods.samples.label.copy()
    label[since:until] = 1 - label[since:until]
    return replace(periods, samples=replace(periods.samples, label=label))


def scores(name: str, trained: int, periods: Periods, seen: Periods, tested: int) -> np.ndarray:
    """Return the scores of D_tested, read in the stream `seen`, by the model of period `trained`."""
    spec = rivals.rows(periods.fingerprint, 0, RECIPE)[name](trained)
    state = classical.fit(spec, periods).state
    return classical.score(spec, state, seen, seen.rows(tested))


def test_snapshots_stop_at_the_period_and_at_the_models_age(periods: Periods) -> None:
    row = np.arange(3000)
    assert np.array_equal(snapshots(periods, None), row)
    assert np.array_equal(snapshots(periods, 4), row // 600 * 600)
    assert np.array_equal(snapshots(periods, 2), np.minimum(row // 600 * 600, 1800))
    short = replace(periods, borders=(500, 1100, 1700))
    assert snapshots(short, 2)[[0, 499, 500, 1099, 1100]].tolist() == [0, 0, 500, 500, 1100]
    long = replace(periods, borders=(1300, 1900, 2500))
    assert snapshots(long, 2)[[0, 99, 100, 699, 700, 1299, 1300]].tolist() == [0, 0, 100, 100, 700, 700, 1300]


@pytest.mark.parametrize("as_of", [1, 2, 3])
def test_counts_by_period_see_no_label_after_the_model(periods: Periods, as_of: int) -> None:
    stop = periods.borders[as_of]
    before, after = (side_table(p, as_of)[:, COUNTS] for p in (periods, flipped(periods, stop)))
    assert np.array_equal(before, after)
    assert not np.array_equal(before, side_table(flipped(periods, stop - 600), as_of)[:, COUNTS])


def test_counts_by_period_see_no_label_of_the_own_period(periods: Periods) -> None:
    span = periods.span(2)
    before, after = (side_table(p, 4)[span, COUNTS] for p in (periods, flipped(periods, span.start, span.stop)))
    assert np.array_equal(before, after)


@pytest.mark.parametrize("model", BY_HISTORY)
def test_a_stale_model_at_period_freshness_does_not_see_later_labels(periods: Periods, model: str) -> None:
    poisoned = flipped(periods, periods.borders[1])
    stale = f"{model}+side@period/full-retraining"
    assert np.array_equal(scores(stale, 1, periods, periods, 4), scores(stale, 1, periods, poisoned, 4))
    online = f"{model}+side/full-retraining"
    assert not np.array_equal(scores(online, 1, periods, periods, 4), scores(online, 1, periods, poisoned, 4))


@pytest.mark.parametrize("model", BY_HISTORY)
def test_without_side_features_there_are_no_counts(periods: Periods, model: str) -> None:
    """The default's scores hang on weights and on the sample, not on what was counted before it."""
    name = f"{model}/full-retraining"
    assert rivals.rows("d", 0)[name](1).recipe.side == "none"
    for poisoned in (flipped(periods, 0), flipped(periods, periods.borders[1])):
        assert np.array_equal(scores(name, 1, periods, periods, 3), scores(name, 1, periods, poisoned, 3))


def test_din_reads_the_labels_of_its_own_user_alone(periods: Periods) -> None:
    user = periods.samples.user
    mine = user == user[periods.rows(3).row[0]]
    label = np.where(mine, periods.samples.label, 1 - periods.samples.label)
    poisoned = replace(periods, samples=replace(periods.samples, label=label))
    own, others = mine[periods.span(3)], ~mine[periods.span(3)]
    one, two = (scores("din/full-retraining", 1, periods, seen, 3) for seen in (periods, poisoned))
    assert np.array_equal(one[own], two[own])
    assert not np.array_equal(one[others], two[others])


def test_a_stale_model_ages_by_period_and_not_online(plant: Any) -> None:
    """Items keep a taste that a counter can follow but the weights of period 1 cannot: new items come with D_2."""
    kinds = np.random.default_rng(5).random(440) < 0.5

    def fixed(rng: Any, user: Any, item: Any, history: Any, liked: Any) -> np.ndarray:
        return rng.random(len(user)) < np.where(kinds[item], 0.9, 0.1)

    made = plant(fixed, periods=5, rows=600)
    item = made.samples.item.copy()
    item[1200:] += 40  # from D_3 on, items that the model of period 1 has never counted
    made = replace(made, samples=replace(made.samples, item=item), fingerprint="newcomers")
    rows = made.rows(5)

    def reached(name: str, trained: int) -> float:
        return auc(rows.label, scores(name, trained, made, made, 5))

    fresh, stale = (reached("logistic+side@period/full-retraining", t) for t in (4, 1))
    assert fresh > stale + 0.05
    assert reached("logistic+side/full-retraining", 1) > stale + 0.05  # the defect: counts that keep an old model young


def test_names_say_what_is_counted_and_the_config_says_the_rest() -> None:
    recipe = config.load(None, ["baselines.epochs=7", "baselines.patience=3"]).baselines
    plans = rivals.rows("d", 0, recipe)
    found = {n: plans[f"mf{n}/full-retraining"](2).recipe for n in ("", *SIDES)}
    assert [r.side for r in found.values()] == ["none", "online", "period"]
    assert {(r.epochs, r.patience) for r in found.values()} == {(7, 3)}
    assert len({plans[f"mf{n}/full-retraining"](2).digest for n in ("", *SIDES)}) == 3
    chosen = rivals.rows("d", 0, config.load(None, ["baselines.side=period"]).baselines)
    assert chosen["mf/full-retraining"](2) == chosen["mf+side@period/full-retraining"](2)


def test_the_item_rate_by_period_is_the_item_rate_where_a_period_begins(periods: Periods) -> None:
    online = naive_scores(periods.samples, periods.borders[0])["item-rate"]
    rate = item_rate_by_period(periods)
    starts = [0, *periods.borders[:-1]]
    assert np.array_equal(rate[starts], online[starts])
    for t in range(1, 5):
        span = periods.span(t)
        poisoned = item_rate_by_period(flipped(periods, span.start))
        assert np.array_equal(rate[span], poisoned[span])
    assert (item_rate_by_period(flipped(periods, 600))[1200:] != rate[1200:]).any()
    stale, poisoned = item_rate_by_period(periods, 1), item_rate_by_period(flipped(periods, periods.borders[1]), 1)
    assert np.array_equal(stale, poisoned)
    assert not np.array_equal(stale[periods.span(4)], rate[periods.span(4)])
