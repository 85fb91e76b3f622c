"""Several adapters in one pass over the frozen weights give what a pass for each gives."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from desks import body_of, desk_for, http, models_of
from workbench import Workbench, make_workbench, randomise

from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.merge import delta_arithmetic
from lsat_ray.config import Experiment, PromptConfig
from lsat_ray.data.periods import Periods
from lsat_ray.prompts.encode import Encoder
from lsat_ray.scoring.model import Model, probability
from lsat_ray.scoring.prefix import Ask, Event, assemble, prepare
from lsat_ray.scoring.recommender import TOGETHER, Recommender
from lsat_ray.scoring.score import part

LAYOUTS = ["exact", "shared-history", "stream"]


def adapters_of(bench: Workbench, count: int = 2) -> list[Adapter]:
    found = []
    for seed in range(count):
        randomise(bench.model, seed, 0.2)
        found.append(bench.model.snapshot())
    return found


def asks_of(periods: Periods, candidates: tuple[int, ...]) -> list[Ask]:
    """Return asks of different users, the last without a history."""
    samples, titles = periods.samples, periods.titles
    found = []
    for i, count in zip(range(210, 210 + 10 * len(candidates), 10), candidates, strict=True):
        past = zip(samples.history_item[i], samples.history_label[i], strict=True)
        history = tuple(Event(titles[k], bool(y)) for k, y in past)
        found.append(Ask(history[: 10 - i % 7], tuple(f"{titles[k % len(titles)]} {k}" for k in range(count))))
    return [*found, Ask((), (titles[0],))]


def compare(bench: Workbench, worn: list[Adapter | None], layout: Any, atol: float = 4e-6) -> None:
    """Compare margins within the rounding of logits of ten and more, and what is answered to 1e-6."""
    encoder = Encoder(bench.backbone.tokenizer, PromptConfig(layout=layout), bench.periods.titles)
    asks = asks_of(bench.periods, (1, 4, 1))
    for encoded, group in assemble(encoder, [prepare(encoder, ask) for ask in asks], 2048):
        index, together = part(bench.model, worn, encoded, 2048, group)
        assert together.shape == (len(worn), len(index))
        for adapter, margin in zip(worn, together, strict=True):
            again, (alone,) = part(bench.model, [adapter], encoded, 2048, group)
            np.testing.assert_array_equal(index, again)
            np.testing.assert_allclose(margin, alone, atol=atol, rtol=0)
            np.testing.assert_allclose(probability(margin), probability(alone), atol=atol / 4, rtol=0)
        assert np.ptp(together, axis=0).min() > 1e-3  # the adapters differ, so equality says something


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_adapter_gives_its_own_margins(bench: Workbench, layout: str) -> None:
    compare(bench, list(adapters_of(bench)), layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_and_scales_may_differ_and_one_may_be_the_frozen_backbone(bench: Workbench, layout: str) -> None:
    first, second = adapters_of(bench)
    wide = delta_arithmetic([first, second], (0.3, 0.7))
    assert wide.rank != first.rank and wide.scale != first.scale
    compare(bench, [first, None, wide], layout)
    compare(bench, [wide, first, second], layout)  # the slot's weights of before are gone


def test_a_backbone_of_half_precision_rounds_no_more(
    tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path
) -> None:
    bench = make_workbench(tiny_experiment, tiny_periods, tiny_backbone_folder, dtype="bfloat16")
    compare(bench, list(adapters_of(bench)), "exact", atol=0.05)


def test_an_adapter_of_other_modules_is_refused(bench: Workbench) -> None:
    from lsat_ray.errors import LsatError

    first, second = adapters_of(bench)
    odd = Adapter(dict(list(second.state.items())[2:]), second.rank, second.alpha)
    with pytest.raises(LsatError, match=r"check lora\.targets"):
        bench.model.wear_several([first, odd])


def served_models(adapters: list[str]) -> list[Model]:
    """Return a model of every kind that is served; several share an adapter."""
    a, b, c, _ = adapters
    return [
        *models_of(adapters),
        Model("logit", 2, "output-ensemble", (b, c), (0.5, 0.5), "logit"),
        Model("three", 2, "output-ensemble", (a, b, c), (0.2, 0.3, 0.5)),
        Model("gated", 2, "gated-ensemble", (a, c), (0.1, 0.2, -0.3, 0.4, 0.5)),
        *(Model(m, 2, m, (a, b), (0.4, 0.6)) for m in ("peft-linear", "svd", "ties", "dare", "magnitude-prune")),
    ]


def run(recommender: Recommender, models: list[Model], work: Any, live: bool) -> tuple[int, np.ndarray]:
    """Return the number of passes, and the scores [models, N] in the order of the rows."""
    steps, count = recommender.steps(models, [recommender.passes(m) for m in models], work, live), 0
    while True:
        try:
            next(steps)
            count += 1
        except StopIteration as done:
            rows, scores = done.value
            return count, np.stack(scores)[:, np.argsort(rows)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_model_scores_as_with_a_pass_for_each_adapter(
    tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, tmp_path: Path, layout: str
) -> None:
    served = desk_for(tiny_experiment, tiny_periods, tiny_backbone_folder, tmp_path, layout=layout)
    recommender, encoder = served.desk.recommender, served.bench.encoder
    models = served_models(served.adapters)
    recommender.prepare(models)

    def work_of(*candidates: int) -> Any:
        prepared = [prepare(encoder, ask) for ask in asks_of(tiny_periods, candidates)]
        return assemble(encoder, prepared, recommender.batch_tokens)

    short, long = work_of(1, 2), work_of(200)
    for several in [[m] for m in models] + [models]:
        for work in (short, long):
            _, expected = run(recommender, several, work, live=False)
            np.testing.assert_allclose(run(recommender, several, work, live=True)[1], expected, atol=1e-6)
    ensemble, three = models[:1], [models[6]]
    assert three[0].strategy == "three"
    assert run(recommender, ensemble, short, True)[0] == run(recommender, three, short, True)[0] == len(short)
    assert run(recommender, ensemble, short, False)[0] == 2 * len(short)
    encoded, group = max(long, key=lambda one: len(one[1]))
    assert 2 * len(group) * encoded.lengths.max() > TOGETHER  # longer than pays
    assert run(recommender, ensemble, [(encoded, group)], True)[0] == 2


def test_a_decoder_that_only_its_own_forward_knows_takes_a_pass_for_each(
    tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    eager = tiny_experiment.model_copy(
        update={"backbone": tiny_experiment.backbone.model_copy(update={"attention": "eager"})}
    )
    models, found = [], []
    for number, experiment in enumerate((tiny_experiment, eager)):
        served = desk_for(experiment, tiny_periods, tiny_backbone_folder, tmp_path / str(number))
        models = models_of(served.adapters)[:1]
        ask = asks_of(tiny_periods, (3,))[0]
        found.append(served.desk.recommender.rank(models[0], served.bench.encoder, ask))
        assert served.bench.model.wears_several == (number == 0)
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)


def test_http_scores_and_ranks_a_short_ensemble_in_one_pass(
    tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    served = desk_for(tiny_experiment, tiny_periods, tiny_backbone_folder, tmp_path)
    worn: list[str] = []
    steps = served.desk.recommender.steps

    def watched(*args: Any, **more: Any) -> Any:
        result = yield from steps(*args, **more)
        worn.append(served.bench.model.peft.active_adapter)
        return result

    served.desk.recommender.steps = watched  # type: ignore[method-assign]
    body = body_of(tiny_periods, 7)

    async def asked() -> None:
        async with http(served.desk) as client:
            (await client.post("/v1/score", json=body)).raise_for_status()
            ranking = {"history": body["history"], "candidates": list(tiny_periods.titles[:5])}
            (await client.post("/v1/rank", json=ranking)).raise_for_status()

    asyncio.run(asked())
    assert worn == ["2x4", "2x4"]
