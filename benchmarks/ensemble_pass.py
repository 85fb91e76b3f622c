"""Measure scoring with two adapters in one pass over the frozen weights against a pass for each, on the same prompts.

    python benchmarks/ensemble_pass.py --json benchmarks/results/ensemble_pass.json

The two ways take turns within a round; a gain is the median of the rounds' ratios (with the quartiles), in seconds of
processor time on a CPU. Both ways put the adapters into the model each time, as the endpoint does. Prompts and weights
are random: time does not depend on them. `predicted` was written down before the shared pass was: what a pass costs
whatever its length is paid once, products and elementwise work twice. `scoring.recommender.TOGETHER` follows from this
table.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import by_shape, turns
from benchmarks.training_rounds import SHAPES, Shape, random_llama
from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.backbone.load import Backbone
from lsat_ray.config import LoraSettings
from lsat_ray.prompts.answer import AnswerTokens
from lsat_ray.prompts.batch import Encoded
from lsat_ray.scoring.recommender import TOGETHER
from lsat_ray.scoring.score import part

WORK = (
    (1, 130, 0),
    (2, 100, 30),
    (4, 100, 30),
    (8, 100, 30),
    (16, 100, 30),
    (10, 14, 120),
    (50, 14, 120),
    (100, 14, 120),
)
"""(prompts, tokens of each, shared prefix): users who ask at the same time, then candidates of one user."""
PREDICTED = {("nano", 1): 1.6, ("nano", 4): 1.35, ("nano", 16): 1.1, ("nano", 100): 1.06, ("20m", 1): 1.0}
"""Gains by shape and prompts."""


def dressed(shape: Shape, device: torch.device) -> tuple[AdaptedBackbone, list[Adapter]]:
    """Return a random backbone and two random adapters."""
    llm = random_llama(shape, device, torch.float32).requires_grad_(False)
    head = llm.lm_head.weight[:2].detach().float()
    model = AdaptedBackbone(Backbone(llm, None, AnswerTokens(0, 1), head, head.new_zeros(2), ""), LoraSettings())
    adapters = []
    for seed in range(2):
        model.reset(seed)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in model.slot_parameters().items():
            if ".lora_B." in name:
                weight.data.copy_(0.1 * torch.randn(weight.shape, generator=generator))
        adapters.append(model.snapshot())
    return model, adapters


def prompts(count: int, width: int, prefix: int, vocabulary: int) -> Encoded:
    """Return random prompts of one length behind a prefix."""
    rng, ends = np.random.default_rng(0), np.arange(count + 1) * width
    tokens = rng.integers(3, vocabulary, prefix + count * width).astype(np.int32)
    rows = np.arange(count)
    return Encoded(tokens[:prefix], tokens[prefix:], ends, ends[1:] - 1, rows, rows, np.zeros(count, np.uint8))


def measure(shape: str, device: torch.device, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each work."""
    model, adapters = dressed(SHAPES[shape], device)
    for count, width, prefix in WORK:
        encoded = prompts(count, width, prefix, SHAPES[shape]["vocabulary"])
        tokens = prefix + count * width

        def apart(encoded: Encoded = encoded) -> np.ndarray:
            return np.concatenate([part(model, [a], encoded)[1] for a in adapters])

        def together(encoded: Encoded = encoded) -> np.ndarray:
            return part(model, adapters, encoded)[1]

        yield {
            "prompts": count,
            "prefix": prefix,
            "tokens": tokens,
            **turns({"apart": apart, "together": together}, rounds, device),
            "predicted": PREDICTED.get((shape, count)),
            "used": len(adapters) * tokens <= TOGETHER,
        }


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    by_shape(__doc__, SHAPES, measure, together=TOGETHER)
