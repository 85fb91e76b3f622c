"""A replica over another backbone than the run's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from desks import desk_for
from safetensors.torch import load_file, save_file

from lsat_ray.config import Experiment
from lsat_ray.data.periods import Periods
from lsat_ray.errors import LsatError
from lsat_ray.serving.setup import Setup


def test_a_replica_over_another_backbone_does_not_start(
    tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    """It answered other probabilities under the same digest."""
    run = tmp_path / "run"
    desk_for(tiny_experiment, tiny_periods, tiny_backbone_folder, run)
    other = tmp_path / "other"
    shutil.copytree(tiny_backbone_folder, other)
    weights = load_file(other / "model.safetensors")
    name = next(iter(sorted(weights)))
    save_file({**weights, name: weights[name] * 1.01}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(LsatError, match=r"trained on backbone .* give the folder of the run's own backbone"):
        Setup.of(tiny_experiment, other, (), run / "adapters", run).desk("replica")
    assert (
        Setup.of(tiny_experiment, tiny_backbone_folder, (), run / "adapters", run).desk("replica").served.version == 1
    )
