"""Every way to a score is the same way: HTTP, bulk, worker and local, in every layout."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from desks import body_of, desk_for, http, models_of

from lsat_ray.config import Experiment
from lsat_ray.data.periods import Periods

LAYOUTS = ["exact", "shared-history", "stream"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_paths_give_the_same_scores(
    tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, tmp_path: Path, layout: str
) -> None:
    """Alpha is chosen on scores of fresh histories; bulk once scored frozen ones."""
    served = desk_for(tiny_experiment, tiny_periods, tiny_backbone_folder, tmp_path, layout=layout, targets=8)
    samples, encoder, models = tiny_periods.rows(2), served.bench.encoder, models_of(served.adapters)
    encoded = encoder.scoring(samples)  # what the worker scores
    place = np.searchsorted(samples.row, encoded.row)
    worker = np.empty((len(models), len(samples)))
    worker[:, place] = served.desk.recommender.scores(models, encoded)

    async def asked() -> tuple[Any, list[Any], list[Any]]:
        whole = await served.desk.bulk(samples)
        halves = [await served.desk.bulk(samples, None, (k, 2)) for k in (0, 1)]
        answers = []
        async with http(served.desk) as client:
            for model in models:
                questions = [body_of(tiny_periods, i, model=model.strategy) for i in range(0, len(samples), 5)]
                reply = await client.post("/v1/score", json={"requests": questions})
                answers.append([a["probability"] for a in reply.json()["answers"]])
        return whole, halves, answers

    whole, halves, answers = asyncio.run(asked())
    for k, model in enumerate(models):
        np.testing.assert_array_equal(whole.scores[model.strategy], worker[k])
        parts = np.stack([half.scores[model.strategy] for half in halves])
        assert (np.isnan(parts).sum(axis=0) == 1).all() or len(samples) == 1
        np.testing.assert_array_equal(np.nansum(parts, axis=0), worker[k])
        np.testing.assert_allclose(answers[k], worker[k, ::5], atol=1e-6)
    assert np.ptp(worker[:, 0]) > 1e-3  # the models differ, so equality says something


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_ranking_over_http_is_the_scores_one_by_one(
    tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, tmp_path: Path, layout: str
) -> None:
    served = desk_for(tiny_experiment, tiny_periods, tiny_backbone_folder, tmp_path, layout=layout)
    body = body_of(tiny_periods, 7)
    titles = list(tiny_periods.titles)

    async def asked() -> None:
        async with http(served.desk) as client:
            for model in served.desk.served.models:
                who = {"model": model.strategy, "history": body["history"]}
                ranking = (await client.post("/v1/rank", json={**who, "documents": titles})).json()
                found = {r["index"]: r["relevance_score"] for r in ranking["results"]}
                scores = [r["relevance_score"] for r in ranking["results"]]
                assert scores == sorted(scores, reverse=True) and len(found) == len(titles)
                assert ranking["digest"] == model.digest and ranking["history_used"] == 10
                for i in (0, 13, len(titles) - 1):
                    one = (await client.post("/v1/score", json={**who, "target": titles[i]})).json()
                    assert found[i] == pytest.approx(one["probability"], abs=1e-6)
                best = (await client.post("/v1/rank", json={**who, "candidates": titles, "top_n": 3})).json()
                assert best["results"] == ranking["results"][:3]

    asyncio.run(asked())
