"""A small log, a barely trained code backbone, and a model that wears its slot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scrambled import scramble

from lsat_ray.config import BackboneConfig, LoraSettings, NanoConfig
from lsat_ray.generative import backbone, synthetic
from lsat_ray.generative.backbone import CodeBackbone
from lsat_ray.generative.blocks import Blocks
from lsat_ray.generative.model import GenerativeModel

NANO = NanoConfig(hidden=32, layers=2, heads=4, context=256, epochs=1, batch_size=16)


@pytest.fixture(scope="session")
def log() -> Blocks:
    """Return a synthetic log of 60 items."""
    return synthetic.generate(users=60, items=60, size=4, seed=1)


@pytest.fixture(scope="session")
def folder(log: Blocks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a nano backbone built on block 0."""
    torch.set_num_threads(1)
    return backbone.build(log, NANO, tmp_path_factory.mktemp("codes"), history=8)


@pytest.fixture
def code_backbone(log: Blocks, folder: Path) -> CodeBackbone:
    """Return the backbone, loaded afresh."""
    torch.set_num_threads(1)
    return backbone.load(BackboneConfig(device="cpu"), folder, log, text=False)


@pytest.fixture
def model(code_backbone: CodeBackbone) -> GenerativeModel:
    """Return a model with a random, not a zero, adapter in its slot."""
    model = GenerativeModel(code_backbone, LoraSettings(rank=4, alpha=8, targets=("q_proj", "v_proj")))
    scramble(model, 0)
    return model
