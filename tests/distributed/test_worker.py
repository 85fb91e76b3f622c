"""One rank of a session, in this process, on the real stream actor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from lsat_ray.config import EngineConfig, Experiment, PromptConfig
from lsat_ray.data.periods import Periods, Slice
from lsat_ray.distributed.replay import StreamReplayer
from lsat_ray.distributed.worker import Worker
from lsat_ray.runs.tasks import Context, Fit
from lsat_ray.strategies.base import Setting, full_retraining
from lsat_ray.training.fit import TorchEngine

pytestmark = pytest.mark.ray


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


@pytest.fixture(scope="module")
def replayer(ray_cluster: None, tiny_periods: Periods) -> Any:
    actor = StreamReplayer.remote([ray.put(tiny_periods)], 1)  # type: ignore[attr-defined]
    for t in range(1, tiny_periods.count + 1):
        ray.get(actor.arrive.remote(t))
    return actor


def worker(config: Experiment, periods: Periods, backbone: Path, folder: Path, replayer: Any) -> Worker:
    context = Context(config, str(backbone), str(folder / "adapters"), periods.titles, replayer)
    return Worker(context, config.engine, rank=0)


def setting(config: Experiment, periods: Periods) -> Setting:
    return Setting("b", periods.fingerprint, config, 0)


def test_a_killed_session_goes_on_in_the_middle_of_its_adapter(
    tiny_experiment: Experiment,
    tiny_periods: Periods,
    tiny_backbone_folder: Path,
    replayer: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = EngineConfig(kind="torch", workers=1, checkpoint_every=3)
    recipe = tiny_experiment.recipe.model_copy(update={"batch_size": 16, "epochs": 2})
    config = tiny_experiment.model_copy(update={"engine": engine, "recipe": recipe})
    task = Fit(full_retraining(setting(config, tiny_periods), 2), 2)
    whole = worker(config, tiny_periods, tiny_backbone_folder, tmp_path / "whole", replayer)
    whole.run(task)
    killed = worker(config, tiny_periods, tiny_backbone_folder, tmp_path / "killed", replayer)
    killed.engine = Mortal()
    with pytest.raises(Death):
        killed.run(task)
    states = tmp_path / "killed" / "train" / "states" / task.key
    assert [p.name for p in states.iterdir()] == ["step-00000003"]
    again = worker(config, tiny_periods, tiny_backbone_folder, tmp_path / "killed", replayer)
    facts = again.run(task)
    assert "resumed at step 3" in capsys.readouterr().out
    assert facts["steps"] > 4
    assert not states.exists()
    expected, found = (w.store.load(task.key).state for w in (whole, again))
    assert all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize("layout", ["exact", "shared-history"])
def test_what_shares_a_history_is_encoded_together(
    tiny_experiment: Experiment,
    tiny_periods: Periods,
    tiny_backbone_folder: Path,
    replayer: Any,
    tmp_path: Path,
    layout: Any,
) -> None:
    prompt = PromptConfig(layout=layout, targets=8)
    config = tiny_experiment.model_copy(update={"prompt": prompt, "engine": EngineConfig(kind="torch", workers=1)})
    mine = worker(config, tiny_periods, tiny_backbone_folder, tmp_path, replayer)
    slices = (Slice(1, "train"), Slice(2, "train"), Slice(1, "validation"))
    encoded = mine.encode(slices, as_of=2)
    rows = tiny_periods.select(slices)
    together = mine.encoder(rows.take(np.argsort(rows.row, kind="stable")))
    assert sorted(encoded.row) == sorted(rows.row)
    assert len(encoded) == len(together)
    if layout == "shared-history":
        apart = sum(len(mine.encoder(tiny_periods.rows(*s))) for s in slices)
        assert len(encoded) < apart
