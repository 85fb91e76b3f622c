"""Every way to a score is the same way: HTTP, bulk, worker and local, in every layout."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from workbench import make_workbench, randomise

from lsat_ray.adapters.store import AdapterStore
from lsat_ray.config import Experiment, PromptConfig
from lsat_ray.data.periods import Periods
from lsat_ray.distributed.scorer import Scorer, Setup
from lsat_ray.scoring.recommender import Model, Recommender
from lsat_ray.scoring.served import Served, write_current

LAYOUTS = ["exact", "shared-history", "stream"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bulk_scores_with_the_encoding_of_the_worker(
    tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, tmp_path: Path, layout: str
) -> None:
    """Alpha is chosen on scores of fresh histories; bulk once scored frozen ones."""
    torch.set_num_threads(1)
    prompt = PromptConfig(layout=layout, targets=8)
    bench = make_workbench(tiny_experiment, tiny_periods, tiny_backbone_folder, prompt)
    randomise(bench.model, size=0.4)
    store, spec = AdapterStore(tmp_path / "adapters"), bench.spec()
    store.publish(spec, bench.model.snapshot(), {}, "tiny")
    model = Model("short-term", 1, "single", (spec.digest,), (1.0,))
    write_current(tmp_path, Served(1, (model,)))
    setup = Setup(
        str(tiny_backbone_folder), tiny_experiment.backbone, bench.model.lora, prompt, tiny_periods.titles,
        str(store.root), str(tmp_path), 10, 16384, 1, 16, 0.0, None,
    )  # fmt: skip
    samples = tiny_periods.rows(2)
    bulk = asyncio.run(Scorer(setup).score_bulk(samples)).scores["short-term"]
    worker = Recommender(bench.model, store)
    worker.prepare([model])
    encoded = bench.encoder.scoring(samples)
    expected = np.empty(len(samples))
    expected[np.searchsorted(samples.row, encoded.row)] = worker.scores([model], encoded)[0]
    np.testing.assert_array_equal(bulk, expected)
