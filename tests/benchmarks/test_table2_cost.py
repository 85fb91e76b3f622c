"""The cost of Table 2 in small: both ways end, and the trainings are counted as the paper's code makes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import table2_cost
from benchmarks.table2_reference import Cost, Reference
from lsat_ray.backbone.load import load
from lsat_ray.data.periods import Slice
from lsat_ray.runs.check import check
from lsat_ray.runs.context import opened
from lsat_ray.runs.local import LocalBackend
from lsat_ray.scoring.score import score
from lsat_ray.strategies import make
from lsat_ray.strategies.graph import closure

KEYS = {"wall_ratio", "cpu_ratio", "sharing", "engine", "scoring", "search", "auc_gap"}
SMALL = ["--json", "x", "--periods", "2", "--samples", "20", "--hidden", "32", "--vocabulary", "420"]


@pytest.mark.slow
def test_both_ways_end(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    words = ["--periods", "2", "--samples", "20", "--hidden", "32", "--vocabulary", "420"]
    table2_cost.main(["--json", str(out), *words])
    tree = json.loads(out.read_text())
    assert tree.keys() >= KEYS
    assert all(tree[k] > 0 for k in KEYS - {"auc_gap"})
    assert set(tree["auc_gap"]) == set(tree["auc"]["ours"]) == set(tree["auc"]["reference"])
    assert tree["trainings"]["ours"] < tree["trainings"]["reference"]
    assert tree["wall_ratio_once"] < tree["wall_ratio"]
    assert "machine" in tree and tree["command"].endswith("420")


@pytest.mark.slow
@pytest.mark.parametrize("over", ["language", "answer"])
def test_the_reference_scores_as_we_do(over: str, tmp_path: Path) -> None:
    """Trainer.predict, padded, over the whole vocabulary, gives the margins of the lean walk."""
    options = table2_cost.parse(SMALL)
    config, _ = table2_cost.built(table2_cost.settings(options), options, tmp_path / "backbone")
    with opened(config, tmp_path, LocalBackend(config), print, serve=False) as run:
        reference = Reference(run, load(run.config.backbone, tmp_path / "backbone"), over, tmp_path / "trainer")
        adapter = reference.model.snapshot()
        generator = torch.Generator().manual_seed(0)
        for weight in adapter.state.values():
            weight.normal_(0, 0.2, generator=generator)
        found = reference._margins("score", "drawn", adapter, Slice(2, "all"))
        reference.model.wear(adapter)
        encoded = reference.encoder(run.periods.rows(2))
        expected = score(reference.model, adapter, encoded)
    assert expected.std() > 0.05
    np.testing.assert_allclose(found, expected[np.argsort(encoded.row)], rtol=1e-3, atol=1e-3)
    assert [key[0] for key in reference.cost.jobs] == ["score"]


def test_a_job_that_was_done_twice_counts_once_at_its_mean() -> None:
    cost = Cost()
    cost.jobs = {("train", "a"): [np.array([2.0, 1.0]), np.array([4.0, 3.0])], ("train", "b"): [np.ones(2)]}
    assert cost.once("train").tolist() == [4.0, 3.0]
    assert cost.trainings() == 3


@pytest.mark.parametrize(("periods", "reference", "distinct"), [(20, 82, 39)])
def test_the_papers_trainings(periods: int, reference: int, distinct: int) -> None:
    words = ["--json", "x", "--periods", str(periods), "--samples", "20"]
    config = table2_cost.settings(table2_cost.parse(words))
    rows = make(check(config).setting("", 0))
    tested = range(config.first_test - 1, periods)
    own = [closure([s for t in tested if (p := row.plan(t)) for s in p.specs()]) for row in rows]
    assert sum(map(len, own)) == reference
    assert len({s.digest for several in own for s in several}) == distinct
