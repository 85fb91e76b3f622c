"""A worker in this process, over the stream in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lsat_ray.config import EngineConfig, Experiment, PromptConfig
from lsat_ray.data.periods import Periods, Slice
from lsat_ray.data.stream import Stream
from lsat_ray.runs.tasks import Context, Fit
from lsat_ray.runs.worker import Worker
from lsat_ray.strategies.base import Setting, full_retraining
from lsat_ray.training.fit import TorchEngine


class Death(Exception):
    """What a kill looks like from inside."""


class Mortal(TorchEngine):
    """Dies before the step after so many."""

    left = 4

    def step(self, lr: float) -> None:
        if self.left == 0:
            raise Death
        self.left -= 1
        super().step(lr)


@pytest.fixture
def stream(tiny_periods: Periods) -> Stream:
    return Stream(tiny_periods, watermark=tiny_periods.count)


@pytest.fixture
def said() -> list[str]:
    return []


def worker(
    config: Experiment, periods: Periods, backbone: Path, folder: Path, stream: Stream, said: list[str]
) -> Worker:
    context = Context(config, str(backbone), str(folder / "adapters"), periods.titles)
    return Worker(context, config.engine, stream, lambda _: TorchEngine(), said.append)


def setting(config: Experiment, periods: Periods) -> Setting:
    return Setting("b", periods.fingerprint, config, 0)


def test_a_killed_session_goes_on_in_the_middle_of_its_adapter(
    tiny_experiment: Experiment,
    tiny_periods: Periods,
    tiny_backbone_folder: Path,
    stream: Stream,
    said: list[str],
    tmp_path: Path,
) -> None:
    engine = EngineConfig(kind="torch", workers=1, checkpoint_every=3)
    recipe = tiny_experiment.recipe.model_copy(update={"batch_size": 16, "epochs": 2})
    config = tiny_experiment.model_copy(update={"engine": engine, "recipe": recipe})
    task = Fit(full_retraining(setting(config, tiny_periods), 2))
    whole = worker(config, tiny_periods, tiny_backbone_folder, tmp_path / "whole", stream, said)
    whole.run(task)
    killed = worker(config, tiny_periods, tiny_backbone_folder, tmp_path / "killed", stream, said)
    killed.engine = Mortal()
    with pytest.raises(Death):
        killed.run(task)
    states = tmp_path / "killed" / "train" / "states" / task.key
    assert [p.name for p in states.iterdir()] == ["step-00000003"]
    again = worker(config, tiny_periods, tiny_backbone_folder, tmp_path / "killed", stream, said)
    again.run(task)
    assert said == ["training: resumed at step 3"]
    assert again.store.manifest(task.key)["facts"]["steps"] > 4
    assert not states.exists()
    expected, found = (w.store.load(task.key).state for w in (whole, again))
    assert all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize("layout", ["exact", "shared-history"])
def test_what_shares_a_history_is_encoded_together(
    tiny_experiment: Experiment,
    tiny_periods: Periods,
    tiny_backbone_folder: Path,
    stream: Stream,
    tmp_path: Path,
    layout: Any,
) -> None:
    prompt = PromptConfig(layout=layout, targets=8)
    config = tiny_experiment.model_copy(update={"prompt": prompt, "engine": EngineConfig(kind="torch", workers=1)})
    mine = worker(config, tiny_periods, tiny_backbone_folder, tmp_path, stream, [])
    slices = (Slice(1, "train"), Slice(2, "train"), Slice(1, "validation"))
    encoded = mine.encode(slices, as_of=2)
    rows = tiny_periods.select(slices)
    together = mine.encoder(rows.take(np.argsort(rows.row, kind="stable")))
    assert sorted(encoded.row) == sorted(rows.row)
    assert len(encoded) == len(together)
    if layout == "shared-history":
        apart = sum(len(mine.encoder(tiny_periods.rows(*s))) for s in slices)
        assert len(encoded) < apart


class Other(TorchEngine):
    """Rank 0 of two; the other rank saw something else on the disk."""

    def __init__(self, other: int) -> None:
        super().__init__()
        self.other = other

    def gather(self, values: np.ndarray) -> np.ndarray:
        return np.append(values, np.array([self.other], dtype=values.dtype)) if len(values) == 1 else values


def test_rank_0_says_what_is_in_the_store_and_ranks_that_see_other_states_begin_anew(
    tiny_experiment: Experiment,
    tiny_periods: Periods,
    tiny_backbone_folder: Path,
    stream: Stream,
    said: list[str],
    tmp_path: Path,
) -> None:
    """Each rank looked by itself: one went on to the next task, the others waited for it in a collective call."""
    engine = EngineConfig(kind="torch", workers=1, checkpoint_every=3)
    recipe = tiny_experiment.recipe.model_copy(update={"batch_size": 16, "epochs": 2})
    config = tiny_experiment.model_copy(update={"engine": engine, "recipe": recipe})
    task = Fit(full_retraining(setting(config, tiny_periods), 2))
    killed = worker(config, tiny_periods, tiny_backbone_folder, tmp_path, stream, said)
    killed.engine = Mortal()
    with pytest.raises(Death):
        killed.run(task)
    again = worker(config, tiny_periods, tiny_backbone_folder, tmp_path, stream, said)
    again.engine = Other(-1)
    assert again.run(task)["targets"] > 0, "the other rank says that the adapter is there; rank 0 does not see it"
    assert said == ["training: not resumed: the workers see states of steps [-1, 3]"]
    again.engine = Other(0)
    assert again.run(task)["targets"] == 0, "rank 0 sees it; the other rank does not"
