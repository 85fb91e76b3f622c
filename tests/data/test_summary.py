"""What a log holds is told, and what would spoil a run is refused or warned of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lsat_ray.config import DataConfig, Experiment, PeriodsConfig
from lsat_ray.data import load, recbole
from lsat_ray.data.interactions import Interactions, deduplicate, write_ids
from lsat_ray.data.periods import Periods, cut
from lsat_ray.data.summary import summarise
from lsat_ray.errors import LsatError

NOW = 1_800_000_000.0
REAL = DataConfig(format="recbole", path="unread")


def rated(folder: Path, ratings: list[float], repeat: int = 1) -> Path:
    """Write a RecBole log of one user whose events have these ratings, each row so many times."""
    rows = [f"u\ti{k % 7}\t{r}\t{1_000_000_000 + k}" for k, r in enumerate(ratings) for _ in range(repeat)]
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (folder / "toy.inter").write_text(head + "\n".join(rows) + "\n")
    items = "".join(f"i{k}\tTitle {k}\n" for k in range(7))
    (folder / "toy.item").write_text("item_id:token\ttitle:token_seq\n" + items)
    return folder


def halves(count: int) -> PeriodsConfig:
    return PeriodsConfig(number=count)


@pytest.mark.parametrize("value", [0.0, 1.0, 5.0])
def test_a_log_of_one_rating_is_refused_when_it_is_cut(tmp_path: Path, value: float) -> None:
    log = recbole.read(rated(tmp_path, [value] * 40), 3)
    with pytest.raises(LsatError, match=r"data\.positive_above: with 3 all 30 samples .* likes and dislikes"):
        cut(log, REAL, halves(2))


def test_zero_one_ratings_under_the_default_threshold_are_refused_with_the_remedy(tmp_path: Path) -> None:
    data = REAL.model_copy(update={"path": str(rated(tmp_path, [0.0, 1.0] * 20))})
    with pytest.raises(LsatError, match=r"data\.positive_above: with 3 .* dislikes; ratings run from 0 to 1, .* 0\.5"):
        cut(load(data), data, halves(2))
    mended = data.model_copy(update={"positive_above": 0.5})
    assert cut(load(mended), mended, halves(2)).count == 2


def test_a_tested_period_of_one_class_is_a_warning(tmp_path: Path) -> None:
    ratings = [5.0, 1.0] * 20 + [5.0] * 10 + [5.0, 1.0] * 5  # samples from the 11th on, in periods of ten
    log = recbole.read(rated(tmp_path, ratings), 3)
    periods = cut(log, REAL, halves(5))
    found = summarise(log, periods, 2, NOW).warnings
    assert any("period 4 have one label" in line for line in found)
    assert any("V_t" in line and "4" in line for line in found)
    assert not any("period 4 have one label: no AUC" in line for line in summarise(log, periods, 5, NOW).warnings)


def test_tripled_rows_give_the_clean_log_back(tmp_path: Path, tiny_log: Interactions) -> None:
    """Kept duplicates put targets into their own histories; dropped ones leave the log as it was."""
    clean_folder, tripled_folder = tmp_path / "clean", tmp_path / "tripled"
    rng = np.random.default_rng(0)
    ratings = rng.choice([1.0, 5.0], 60, p=[0.3, 0.7]).tolist()
    for folder, times in ((clean_folder, 1), (tripled_folder, 3)):
        folder.mkdir()
        rated(folder, ratings, times)
    clean, dropped, kept = (
        load(REAL.model_copy(update={"path": str(folder), "duplicates": policy}))
        for folder, policy in ((clean_folder, "drop"), (tripled_folder, "drop"), (tripled_folder, "keep"))
    )
    assert dropped.fingerprint() == clean.fingerprint() and dropped.duplicates == 120
    assert kept.duplicates == 120 and len(kept) == 180
    line = summarise(dropped, cut(dropped, REAL, halves(2)), 2, NOW)
    assert line.like_share == summarise(clean, cut(clean, REAL, halves(2)), 2, NOW).like_share
    assert "120 duplicates" in line.line()

    def own_history(log: Interactions) -> float:
        samples = cut(log, REAL, halves(2)).samples
        same = (samples.history_item == samples.item[:, None]) & (
            samples.history_timestamp == samples.timestamp[:, None]
        )
        return float(same.any(axis=1).mean())

    assert own_history(dropped) == 0
    assert own_history(kept) > 0.5
    with pytest.raises(LsatError, match=r"data\.duplicates: 120 of 180 rows .*user u, item i0, second 1000000000"):
        load(REAL.model_copy(update={"path": str(tripled_folder), "duplicates": "refuse"}))


def test_rows_that_differ_in_rating_or_time_are_no_duplicates(tiny_log: Interactions) -> None:
    two = np.zeros(2, np.int32)
    ids = np.array(["a"])
    base: dict[str, Any] = {"user": two, "item": two, "label": np.ones(2, np.uint8), "timestamp": np.ones(2, np.int64)}
    log = Interactions(**base, user_ids=ids, item_ids=ids, titles=("t",), rating=np.array([4.0, 5.0]))
    assert deduplicate(log, "drop").duplicates == 0
    same = deduplicate(replace(log, rating=np.array([4.0, 4.0])), "drop")
    assert (same.duplicates, len(same)) == (1, 1)
    assert same.rating is not None and len(same.rating) == 1
    assert deduplicate(replace(log, rating=None), "drop").duplicates == 1
    kept = deduplicate(tiny_log, "drop")
    assert kept.duplicates == 0 and kept.fingerprint() == tiny_log.fingerprint()


def test_the_line_tells_the_log(tiny_log: Interactions, tiny_periods: Periods, tiny_experiment: Experiment) -> None:
    summary = summarise(replace(tiny_log, dropped=3), tiny_periods, tiny_experiment.first_test, NOW)
    assert (summary.samples, summary.users, summary.items) == (440, 24, 60)
    assert summary.warmup == 200 and summary.dropped == 3
    assert summary.like_share == pytest.approx(tiny_periods.samples.label.mean())
    assert summary.first == "2020-01-01" and summary.last > summary.first
    line = summary.line()
    assert "\n" not in line
    for part in ("440 samples", "24 users", "60 items", "2020-01-01", "200 samples before", "3 rows dropped"):
        assert part in line
    assert summary.warnings == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t * 1000, "from the future .*milliseconds"),
        (lambda t: t - t.min(), "from before 1990 .*1970-01-01"),
        (lambda t: np.full_like(t, 5), "same time"),
    ],
)
def test_implausible_times_are_warned_of(tiny_log: Interactions, tiny_periods: Periods, change: Any, says: str) -> None:
    import re

    log = replace(tiny_log, timestamp=change(tiny_log.timestamp))
    found = summarise(log, tiny_periods, 2, NOW).warnings
    assert len(found) == 1 and re.search(says, found[0])


def test_blank_titles_are_warned_of_with_their_number(tiny_log: Interactions, tiny_periods: Periods) -> None:
    log = replace(tiny_log, titles=("", " \t", *tiny_log.titles[2:]))
    found = summarise(log, tiny_periods, 2, NOW).warnings
    assert len(found) == 1 and "2 of 60 items have a blank title (first i00000)" in found[0]


def test_dense_ids_are_written_with_the_logs_own(tmp_path: Path, tiny_log: Interactions) -> None:
    write_ids(tiny_log, tmp_path)
    users, items = (pd.read_parquet(tmp_path / "ids" / f"{n}.parquet") for n in ("users", "items"))
    assert list(users) == ["user", "id"] and list(items) == ["item", "id", "title"]
    assert users.set_index("user")["id"].loc[tiny_log.user[7]] == tiny_log.user_ids[tiny_log.user[7]]
    row = items.set_index("item").loc[tiny_log.item[7]]
    assert (row["id"], row["title"]) == (tiny_log.item_ids[tiny_log.item[7]], tiny_log.titles[tiny_log.item[7]])
    assert (len(users), len(items)) == (24, 60)
