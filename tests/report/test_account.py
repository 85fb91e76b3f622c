"""Every second of the wall clock is booked once."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsat_ray.report import account

COLUMNS = ["period", "stage", "subject", "start", "seconds"]


def timings(*rows):
    return pd.DataFrame(rows, columns=COLUMNS)


def booked(*rows):
    return account.wall_clock(timings(*rows)).set_index("stage")


def test_stages_one_after_another():
    clock = booked((0, "start-up", "", 100.0, 2.0), (1, "train", "a", 102.0, 6.0), (1, "score", "", 108.0, 2.0))
    assert clock["seconds"].to_dict() == {"train": 6, "score": 2, "start-up": 2, "unaccounted": 0} or clock[
        "seconds"
    ].to_dict() == {"train": 6, "score": 2, "start-up": 2}
    assert account.goodput(clock.reset_index()) == pytest.approx(0.8)


def test_parallel_training_counts_once_on_the_clock_and_twice_as_work():
    clock = booked((1, "train", "a", 0.0, 4.0), (1, "train", "b", 2.0, 4.0))
    assert clock.loc["train", "seconds"] == 6
    assert clock.loc["train", "worker_seconds"] == 8


def test_training_under_serving_is_booked_to_training_and_a_gap_to_nobody():
    clock = booked((1, "serve", "", 0.0, 10.0), (1, "train", "a", 3.0, 4.0), (2, "search", "", 15.0, 5.0))
    assert clock["seconds"].to_dict() == {"train": 4, "search": 5, "serve": 6, "unaccounted": 5}


def test_unknown_stages_are_kept():
    assert booked((1, "prompt", "", 0.0, 1.0))["seconds"].to_dict() == {"prompt": 1}


def test_no_time_is_no_crash():
    clock = account.wall_clock(timings())
    assert clock.empty
    assert account.goodput(clock) != account.goodput(clock)


stages = st.sampled_from([*account.STAGES, "new"])
spans = st.tuples(st.just(1), stages, st.just(""), st.integers(0, 50).map(float), st.integers(1, 9).map(float))


@given(st.lists(spans, min_size=1, max_size=20))
def test_the_shares_add_up_to_the_whole(rows):
    clock = account.wall_clock(timings(*rows))
    assert clock["share"].sum() == pytest.approx(1)
    assert clock["seconds"].sum() == pytest.approx(max(r[3] + r[4] for r in rows) - min(r[3] for r in rows))
    assert (clock.loc[clock["stage"] != account.REST, "seconds"] <= clock["worker_seconds"].max() + 1e-9).all()


def test_a_shared_adapter_counts_for_each_strategy_that_needs_it():
    rows = timings((1, "train", "aa", 0, 3.0), (1, "train", "bb", 3, 5.0), (1, "train", "peso", 8, 2.0))
    ledger = [
        {"strategy": "long-term", "adapters": ["aa"]},
        {"strategy": "lsat-en(10)", "adapters": {"long": "aa", "short": "bb"}},
        {"strategy": "frozen", "adapters": []},
        {"stage": "start-up"},
    ]
    cost = account.training(rows, ledger, ["long-term", "lsat-en(10)", "frozen", "peso"]).set_index("strategy")
    assert cost["training_seconds"].to_dict() == {"long-term": 3, "lsat-en(10)": 8, "peso": 2}
    assert cost["trainings"].to_dict() == {"long-term": 1, "lsat-en(10)": 2, "peso": 1}


def test_per_period_leaves_out_what_is_of_no_period():
    table = account.per_period(
        timings((0, "start-up", "", 0, 9.0), (2, "train", "a", 9, 1.0), (2, "train", "b", 9, 2.0))
    )
    assert table.to_dict() == {"train": {2: 3.0}}
