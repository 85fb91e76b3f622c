"""Measure what prefix states that were kept save: the same passes with the prefix computed and with it kept.

    python benchmarks/prefix_states.py --json benchmarks/results/prefix_states.json

The two ways take turns within a round; a gain is the median of the rounds' ratios (with the quartiles), in seconds of
processor time on a CPU. Prompts and weights are random, and one adapter is worn. `predicted` was written down before
the first run: by `ensemble_pass.json` a pass costs as much as 320 tokens on nano and 60 on 20m whatever its length, and
kept tokens cost nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ensemble_pass import dressed, prompts
from benchmarks.measuring import by_shape, turns
from benchmarks.training_rounds import SHAPES
from lsat_ray.backbone.states import PrefixStates
from lsat_ray.prompts.batch import Encoded
from lsat_ray.scoring.score import part

WORK = {
    "one question, the preamble kept": (1, 75, 70),
    "10 candidates, the history kept": (10, 14, 120),
    "100 candidates, the history kept": (100, 14, 120),
    "10 candidates, a long history kept": (10, 14, 400),
}
"""(prompts, own tokens of each, shared prefix)."""
FIXED = {"nano": 320, "20m": 60}
"""Tokens that cost as much as a pass whatever its length."""


def predicted(shape: str, count: int, width: int, prefix: int) -> float | None:
    """Return the gain that was expected."""
    if shape not in FIXED:
        return None
    own = FIXED[shape] + count * width
    return round((own + prefix) / own, 2)


def measure(shape: str, device: torch.device, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each work."""
    model, adapters = dressed(SHAPES[shape], device)
    for name, (count, width, prefix) in WORK.items():
        encoded = prompts(count, width, prefix, SHAPES[shape]["vocabulary"])
        known = PrefixStates()
        part(model, adapters[:1], encoded, states=known)

        def computed(encoded: Encoded = encoded) -> np.ndarray:
            return part(model, adapters[:1], encoded)[1]

        def kept(encoded: Encoded = encoded, known: PrefixStates = known) -> np.ndarray:
            return part(model, adapters[:1], encoded, states=PrefixStates(list(known.layers)))[1]

        yield {
            "work": name,
            "prompts": count,
            "prefix": prefix,
            "tokens": prefix + count * width,
            **turns({"computed": computed, "kept": kept}, rounds, device),
            "predicted": predicted(shape, count, width, prefix),
        }


if __name__ == "__main__":
    by_shape(__doc__, SHAPES, measure)
