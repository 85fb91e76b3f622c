"""Layouts that share a history: every target once, no leak, and the same score alone and in company."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workbench import Workbench, randomise

from lsat_ray.config import Experiment, PromptConfig
from lsat_ray.data.interactions import Interactions
from lsat_ray.data.periods import Periods, Slice
from lsat_ray.data.windows import Samples, windows
from lsat_ray.prompts.encode import Encoder
from lsat_ray.prompts.layouts import successive
from lsat_ray.scoring.score import score

SHARING = ("shared-history", "stream")


def encoder(bench: Workbench, layout: Any, targets: int = 8, **changes: Any) -> Encoder:
    """Return an encoder of another layout."""
    config = PromptConfig(layout=layout, targets=targets, **changes)
    return Encoder(bench.backbone.tokenizer, config, bench.periods.titles)


def scores(bench: Workbench, encode: Encoder, samples: Samples) -> dict[int, float]:
    """Return the margin of every row with a random adapter that is the same each time."""
    randomise(bench.model, size=0.4)
    encoded = encode(samples)
    value = score(bench.model, bench.model.snapshot(), encoded)
    assert len(set(encoded.row.tolist())) == len(encoded.row)
    return dict(zip(encoded.row.tolist(), value.tolist(), strict=True))


def one_by_one(bench: Workbench, encode: Encoder, samples: Samples) -> dict[int, float]:
    """Return the same for every fourth row, encoded and scored alone, as the endpoint does."""
    found: dict[int, float] = {}
    for i in range(0, len(samples), 4):
        found |= scores(bench, encode, samples.take(slice(i, i + 1)))
    return found


def agree(together: dict[int, float], alone: dict[int, float]) -> None:
    """Assert that rows score alone as in company."""
    assert alone
    assert {row: together[row] for row in alone} == pytest.approx(alone, abs=2e-5)


@pytest.fixture
def samples(tiny_periods: Periods) -> Samples:
    """Return three periods: users with several targets each."""
    return tiny_periods.select([Slice(1, "all"), Slice(2, "all"), Slice(3, "all")])


@pytest.fixture
def gaps(tiny_periods: Periods) -> Samples:
    """Return slices with holes between them, as full retraining's are not but short slices are."""
    return tiny_periods.select([Slice(1, "train"), Slice(2, "train"), Slice(4, "train")])


@pytest.mark.parametrize("layout", ["exact", *SHARING])
@pytest.mark.parametrize("targets", [1, 3, 8])
def test_every_row_is_a_target_once(bench: Workbench, samples: Samples, layout: str, targets: int) -> None:
    encoded = encoder(bench, layout, targets)(samples)
    assert sorted(encoded.row.tolist()) == sorted(samples.row.tolist())
    label = dict(zip(samples.row.tolist(), samples.label.tolist(), strict=True))
    assert encoded.label.tolist() == [label[r] for r in encoded.row.tolist()]
    assert encoded.targets.max() <= (1 if layout == "exact" else targets)
    assert (np.diff(encoded.sequence) >= 0).all()
    assert (encoded.answer >= encoded.offsets[encoded.sequence]).all()
    assert (encoded.answer < encoded.offsets[encoded.sequence + 1]).all()


def test_scoring_a_shared_history_is_fresh(bench: Workbench, samples: Samples) -> None:
    """The endpoint meets rows one by one; bulk scores must be the same."""
    few = samples.take(slice(0, 60))
    shared = encoder(bench, "shared-history", 8)
    randomise(bench.model, size=0.4)
    encoded = shared.scoring(few)
    value = score(bench.model, bench.model.snapshot(), encoded)
    bulk = dict(zip(encoded.row.tolist(), value.tolist(), strict=True))
    agree(bulk, one_by_one(bench, shared, few))
    assert bulk == pytest.approx(scores(bench, encoder(bench, "exact"), few), abs=5e-5)


def test_sharing_saves_tokens(bench: Workbench, samples: Samples) -> None:
    exact, shared, stream = (len(encoder(bench, x, 16)(samples).tokens) for x in ("exact", *SHARING))
    assert shared < 0.65 * exact
    assert stream < shared


def test_shared_history_of_one_target_is_exact(bench: Workbench, samples: Samples) -> None:
    few = samples.take(slice(0, 40))
    exact = scores(bench, encoder(bench, "exact"), few)
    assert scores(bench, encoder(bench, "shared-history", 1), few) == pytest.approx(exact, abs=5e-5)
    assert np.std(list(exact.values())) > 1e-3


def test_shared_history_is_the_exact_prompt_with_the_leaders_history(bench: Workbench, samples: Samples) -> None:
    columns = {n: getattr(samples, n).copy() for n in ("history_item", "history_label", "history_timestamp")}
    for group in successive(samples, 8):
        for values in columns.values():
            values[group] = values[group[0]]
    frozen = dataclasses.replace(samples, **columns)
    shared = scores(bench, encoder(bench, "shared-history", 8), samples)
    assert shared == pytest.approx(scores(bench, encoder(bench, "exact"), frozen), abs=5e-5)
    assert len(set(shared.values())) > 1


@pytest.mark.parametrize("size", [1, 3, 8, 16])
def test_staleness_is_bounded(samples: Samples, gaps: Samples, tiny_log: Interactions, size: int) -> None:
    order = np.argsort(tiny_log.timestamp, kind="stable")
    for chosen in (samples, gaps):
        seen = []
        for group in successive(chosen, size):
            user = chosen.user[group[0]]
            assert (chosen.user[group] == user).all()
            assert (np.diff(chosen.timestamp[group]) >= 0).all()
            stamps = tiny_log.timestamp[order][tiny_log.user[order] == user]
            newest = chosen.history_timestamp[group[0], -1]
            for i in group:  # interactions of the user that the leader's history lacks
                missed = int(((stamps > newest) & (stamps < chosen.timestamp[i])).sum())
                assert missed <= size - 1
            seen += group.tolist()
        assert sorted(seen) == list(range(len(chosen)))


@pytest.mark.parametrize("targets", [1, 4, 16])
def test_stream_scores_a_target_alone_as_in_company(
    bench: Workbench, samples: Samples, gaps: Samples, targets: int
) -> None:
    for chosen in (samples, gaps):
        encode = encoder(bench, "stream", targets)
        together = scores(bench, encode, chosen)
        agree(together, one_by_one(bench, encode, chosen))
        assert np.std(list(together.values())) > 3e-3


def test_stream_sees_the_window_and_nothing_else(bench: Workbench, samples: Samples) -> None:
    """The score moves with each of the ten labels of the history."""
    encode = encoder(bench, "stream")
    one = samples.take(slice(0, 1))
    reference = scores(bench, encode, one)[int(one.row[0])]
    for j in range(one.history_label.shape[1]):
        label = one.history_label.copy()
        label[0, j] ^= 1
        assert scores(bench, encode, dataclasses.replace(one, history_label=label))[int(one.row[0])] != reference


def flip(samples: Samples, i: int) -> Samples:
    """Return the samples of a world in which target i got the other label: later histories of its user hold it."""
    label = samples.label.copy()
    label[i] ^= 1
    history = samples.history_label.copy()
    same = samples.user == samples.user[i]
    hit = (samples.history_timestamp == samples.timestamp[i]) & (samples.history_item == samples.item[i])
    history[hit & same[:, None]] ^= 1
    return dataclasses.replace(samples, label=label, history_label=history)


@pytest.mark.parametrize("layout", SHARING)
def test_no_target_sees_its_own_label_or_a_later_one(bench: Workbench, samples: Samples, layout: str) -> None:
    encode = encoder(bench, layout, 6)
    reference = scores(bench, encode, samples)
    user = np.bincount(samples.user).argmax()
    mine = np.flatnonzero(samples.user == user)
    assert len(mine) >= 8
    moved = False
    for i in mine[[0, 3, 6]]:
        other = scores(bench, encode, flip(samples, i))
        for row, stamp, who in zip(samples.row, samples.timestamp, samples.user, strict=True):
            if stamp <= samples.timestamp[i] or who != user:
                assert other[int(row)] == pytest.approx(reference[int(row)], abs=2e-5)
            else:
                moved |= abs(other[int(row)] - reference[int(row)]) > 1e-3
    assert moved


def test_ties_that_histories_leave_out_stay_out(bench: Workbench, tiny_log: Interactions) -> None:
    stamp = tiny_log.timestamp // 50_000 * 50_000  # coarse clock: users have several events in one second
    tied = windows(dataclasses.replace(tiny_log, timestamp=stamp), 10, "exclude")
    shared = sum(bool(tied.history_timestamp[i, -1] < tied.timestamp[i]) for i in range(len(tied)))
    assert shared == len(tied)
    tied = tied.take(slice(0, 120))
    encode = encoder(bench, "stream", 8)
    encoded = encode(tied)
    assert len(encoded) < len(tied)
    agree(scores(bench, encode, tied), one_by_one(bench, encode, tied))


@pytest.mark.parametrize("layout", SHARING)
def test_short_histories_are_served(bench: Workbench, samples: Samples, layout: str) -> None:
    item, label, stamp = (getattr(samples, f"history_{n}").copy() for n in ("item", "label", "timestamp"))
    held = np.arange(len(samples)) % 11  # none to ten events
    gone = np.arange(10)[None, :] < (10 - held)[:, None]
    item[gone], label[gone], stamp[gone] = -1, 0, 0
    short = dataclasses.replace(samples, history_item=item, history_label=label, history_timestamp=stamp)
    encode = encoder(bench, layout, 4)
    together = scores(bench, encode, short)
    assert len(together) == len(short)
    if layout == "stream":
        agree(together, one_by_one(bench, encode, short))


def test_stream_drops_the_oldest_events_of_long_windows(bench: Workbench, samples: Samples) -> None:
    whole, cut = encoder(bench, "stream", 4), encoder(bench, "stream", 4, max_tokens=64)
    few = samples.take(slice(0, 60))
    together = scores(bench, cut, few)
    agree(together, one_by_one(bench, cut, few))
    assert max(abs(together[r] - v) for r, v in scores(bench, whole, few).items()) > 1e-3
    label = few.history_label.copy()
    label[:, 0] ^= 1  # the oldest event is out of reach in windows of 64 tokens
    changed = one_by_one(bench, cut, dataclasses.replace(few, history_label=label))
    agree(together, changed)


@pytest.mark.parametrize("layout", SHARING)
def test_an_adapter_is_trained_and_scored_in_its_layout(
    tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, layout: str
) -> None:
    from workbench import make_workbench

    from lsat_ray.config import EngineConfig, Recipe
    from lsat_ray.training.fit import TorchEngine, fit

    bench = make_workbench(tiny_experiment, tiny_periods, tiny_backbone_folder, PromptConfig(layout=layout, targets=4))
    recipe = Recipe(lr=1e-2, batch_size=16, epochs=4, patience=4)
    spec = bench.spec(recipe=recipe)
    fitted = fit(spec, bench.model, bench.train, bench.validation, TorchEngine(), EngineConfig(kind="torch"))
    assert fitted.history[-1][1] < fitted.history[0][1]
    assert fitted.targets == len(bench.train.row) * len(fitted.history)
    assert np.array_equal(score(bench.model, fitted.adapter, bench.validation), fitted.margin)
    assert spec.digest != bench.spec(recipe=recipe, prompt=PromptConfig()).digest
