"""The cost of Table 2 in small: both ways end, and the trainings are counted as the paper's code makes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import table2_cost
from lsat_ray.runs.check import check
from lsat_ray.strategies import make
from lsat_ray.strategies.graph import closure

KEYS = {"wall_ratio", "cpu_ratio", "sharing", "engine", "scoring", "search", "auc_gap"}


@pytest.mark.slow
def test_both_ways_end(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    words = ["--periods", "2", "--samples", "20", "--hidden", "32", "--vocabulary", "420"]
    table2_cost.main(["--json", str(out), *words])
    tree = json.loads(out.read_text())
    assert tree.keys() >= KEYS
    assert all(tree[k] > 0 for k in KEYS - {"auc_gap"})
    assert set(tree["auc_gap"]) == set(tree["auc"]["ours"]) - {"frozen"} == set(tree["auc"]["reference"])
    assert tree["trainings"]["ours"] < tree["trainings"]["reference"]
    assert "machine" in tree and tree["command"].endswith("420")


@pytest.mark.parametrize(("periods", "reference", "distinct"), [(20, 82, 39)])
def test_the_papers_trainings(periods: int, reference: int, distinct: int) -> None:
    words = ["--json", "x", "--periods", str(periods), "--samples", "20"]
    config = table2_cost.settings(table2_cost.parse(words))
    rows = make(check(config).setting("", 0))
    tested = range(config.first_test - 1, periods)
    own = [closure([s for t in tested if (p := row.plan(t)) for s in p.specs()]) for row in rows]
    assert sum(map(len, own)) == reference
    assert len({s.digest for several in own for s in several}) == distinct
