"""Measure scoring with two adapters in one pass over the frozen weights against a pass for each, on the same prompts.

    python benchmarks/ensemble_pass.py --json benchmarks/results/ensemble_pass.json

The two ways take turns within a round; a gain is the median of the rounds' ratios (with the quartiles), in seconds of
processor time on a CPU. Both ways put the adapters into the model each time, as the endpoint does. Prompts and weights
are random: time does not depend on them. `predicted` was written down before the shared pass was: what a pass costs
whatever its length is paid once, products and elementwise work twice. `scoring.recommender.TOGETHER` follows from this
table.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import machine, matmul_peak
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


def seconds(model: AdaptedBackbone, passes: Sequence[Sequence[Adapter]], encoded: Encoded) -> tuple[float, np.ndarray]:
    """Return the seconds of some passes, and the margins [C, N]."""
    clock = time.perf_counter if model.device.type == "cuda" else time.process_time
    began = clock()
    margins = [part(model, worn, encoded)[1] for worn in passes]  # on the host, so the device has ended
    return clock() - began, np.concatenate(margins)


def measure(shape: str, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each work."""
    model, adapters = dressed(SHAPES[shape], device)
    ways = {"apart": [[a] for a in adapters], "together": [adapters]}
    table = []
    for count, width, prefix in WORK:
        encoded = prompts(count, width, prefix, SHAPES[shape]["vocabulary"])
        margin = {name: seconds(model, passes, encoded)[1] for name, passes in ways.items()}  # warms up, too
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, passes in ways.items():
                spent[name].append(seconds(model, passes, encoded)[0])
        gain = np.array(spent["apart"]) / np.array(spent["together"])
        tokens = prefix + count * width
        table.append(
            {
                "prompts": count,
                "prefix": prefix,
                "tokens": tokens,
                **{f"{name}_ms": round(1000 * float(np.median(values)), 2) for name, values in spent.items()},
                "gain": {
                    k: round(float(v), 2) for k, v in zip(("low", "median", "high"), _quartiles(gain), strict=True)
                },
                "predicted": PREDICTED.get((shape, count)),
                "used": len(adapters) * tokens <= TOGETHER,
                "margins_differ_by_at_most": float(np.abs(margin["apart"] - margin["together"]).max()),
            }
        )
        print(shape, table[-1], flush=True)
    return table


def _quartiles(values: np.ndarray) -> np.ndarray:
    return np.quantile(values, (0.25, 0.5, 0.75))


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", default=["nano", "20m"], choices=sorted(SHAPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    result: dict[str, Any] = {"together": TOGETHER, "rounds": args.rounds, "shapes": {}}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    peak = matmul_peak(device)
    for shape in args.shapes:
        result["shapes"][shape] = measure(shape, device, args.rounds)
        result["machine"] = machine(device, 1, peak)
        args.json.write_text(json.dumps(result, indent=2) + "\n")  # what was measured is kept


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
