"""A backbone with a training slot: what the tests of adapters, training and scoring share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.backbone import load
from lsat_ray.backbone.load import Backbone
from lsat_ray.config import Experiment, LoraSettings, PromptConfig, Recipe
from lsat_ray.data.periods import Periods, Slice
from lsat_ray.prompts.batch import Encoded
from lsat_ray.prompts.encode import Encoder


class Workbench(NamedTuple):
    """A backbone with a training slot, and the encoded rows of two slices."""

    experiment: Experiment
    periods: Periods
    backbone: Backbone
    model: AdaptedBackbone
    encoder: Encoder
    train: Encoded
    validation: Encoded

    def spec(self, **changes: Any) -> AdapterSpec:
        """Return the spec of an adapter on T_1 selected on V_1."""
        recipe = changes.pop("recipe", Recipe(lr=5e-3, batch_size=16, epochs=2))
        values: dict[str, Any] = {
            "backbone": self.backbone.fingerprint,
            "data": self.periods.fingerprint,
            "train": (Slice(1, "train"),),
            "validation": (Slice(1, "validation"),),
            "prompt": self.encoder.config,
            "lora": self.model.lora,
            "recipe": recipe,
            "seed": 1,
        }
        return AdapterSpec(**(values | changes))


def make_workbench(
    experiment: Experiment,
    periods: Periods,
    folder: Path,
    prompt: PromptConfig | None = None,
    lora: LoraSettings | None = None,
    checkpointing: bool = False,
    dtype: str = "float32",
) -> Workbench:
    """Load the tiny backbone and encode T_1 and V_1."""
    backbone = load.load(experiment.backbone.model_copy(update={"dtype": dtype}), folder)
    model = AdaptedBackbone(backbone, lora or LoraSettings(rank=4, alpha=8), checkpointing)
    encoder = Encoder(backbone.tokenizer, prompt or experiment.prompt, periods.titles)
    train, validation = encoder(periods.rows(1, "train")), encoder(periods.rows(1, "validation"))
    return Workbench(experiment, periods, backbone, model, encoder, train, validation)


def randomise(model: AdaptedBackbone, seed: int = 0, size: float = 0.2) -> None:
    """Give the training slot weights whose update is not zero."""
    model.reset(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.slot_parameters().values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
