"""Small things that many tests share: a log, its periods, and a random LLaMA with a byte-level BPE."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models; two spinning threads collapse on cores that are shared
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from lsat_ray.config import BackboneConfig, DataConfig, Experiment, NanoConfig, PeriodsConfig, SyntheticConfig
from lsat_ray.data import synthetic
from lsat_ray.data.interactions import Interactions
from lsat_ray.data.periods import Periods, cut

if TYPE_CHECKING:
    from workbench import Workbench

# A test of algebra must not fail because the machine is busy.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")


@pytest.fixture(scope="session")
def tiny_experiment() -> Experiment:
    """Return the config behind the tiny fixtures: 4 periods of 60 samples after a warm-up of 200."""
    stream = SyntheticConfig(users=24, items=60, warmup=200, half_life=120.0, seed=3)
    return Experiment(
        data=DataConfig(keep_last=240, synthetic=stream),
        periods=PeriodsConfig(number=4),
        backbone=BackboneConfig(
            nano=NanoConfig(hidden=32, layers=2, heads=4, vocabulary=420, epochs=0.3), device="cpu"
        ),
        replay={"long_periods": 2},  # type: ignore[arg-type]
        study={"figures": False},  # type: ignore[arg-type]
    )


@pytest.fixture(scope="session")
def tiny_log(tiny_experiment: Experiment) -> Interactions:
    """Return a synthetic log of a few hundred events."""
    data = tiny_experiment.data
    return synthetic.generate(data.synthetic, data.keep_last or 0, data.history)


@pytest.fixture(scope="session")
def tiny_periods(tiny_experiment: Experiment, tiny_log: Interactions) -> Periods:
    """Return the tiny log, cut."""
    return cut(tiny_log, tiny_experiment.data, tiny_experiment.periods)


@pytest.fixture(scope="session")
def tiny_backbone_folder(
    tiny_experiment: Experiment, tiny_periods: Periods, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of a barely trained nano backbone, in Hugging Face format."""
    from lsat_ray.backbone import nano

    root = tmp_path_factory.mktemp("backbone")
    return nano.build(tiny_periods, tiny_experiment.backbone.nano, tiny_experiment.prompt, root)


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a seeded generator."""
    return np.random.default_rng(0)


@pytest.fixture
def bench(tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path) -> Workbench:
    """Return a fresh workbench in the exact layout, on one thread: figures must not depend on the number of cores."""
    import torch
    from workbench import make_workbench

    torch.set_num_threads(1)
    return make_workbench(tiny_experiment, tiny_periods, tiny_backbone_folder)
