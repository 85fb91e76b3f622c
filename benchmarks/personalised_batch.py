"""Measure what a training step with gated meta-LoRAs costs against one with a plain LoRA, on the same prompts.

    python benchmarks/personalised_batch.py --json result.json
    python benchmarks/personalised_batch.py --log $LOG --json result.json

Two ratios: over a plain LoRA whose prompts are computed one by one, as personalised ones must be (their first tokens
pass through their own LoRA); and over one that computes the prompts' shared prefix once. The second cannot fall
below `floor`, what a plain LoRA loses by computing them one by one. Ways take turns within a round, in a new order each
time; a ratio is the median of the rounds' ratios. The backbone has random weights: time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lsat_ray import data
from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.adapters.personal import personal
from lsat_ray.backbone import nano
from lsat_ray.backbone.load import load
from lsat_ray.config import BackboneConfig, DataConfig, Experiment, GateConfig, LoraSettings, NanoConfig
from lsat_ray.data.periods import cut
from lsat_ray.prompts.batch import Encoded, apart, collate
from lsat_ray.prompts.encode import Encoder

MIXES = ("products", "factors")
WIDTH = 64
"""Of the recommender's vectors."""


def step(model: AdaptedBackbone, encoded: Encoded, batch: int) -> float:
    """Return the seconds of one forward and backward pass over the first prompts.

    On a CPU they are seconds of processor time, which a machine shared with others still shows.
    """
    clock = time.perf_counter if model.device.type == "cuda" else time.process_time
    began = clock()
    rows = collate(encoded, np.arange(batch)).to(model.device)
    functional.cross_entropy(model(rows), rows.label.long()).backward()
    for parameter in model.trainable().values():
        parameter.grad = None
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def ratio(seconds: dict[str, list[float]], way: str, other: str) -> dict[str, float]:
    """Return the median, lowest and highest of the rounds' ratios."""
    each = np.array(seconds[way]) / np.array(seconds[other])
    return {"median": float(np.median(each)), "low": float(each.min()), "high": float(each.max())}


def measure(config: Experiment, lora: LoraSettings, members: int, batch: int, rounds: int) -> dict[str, Any]:
    """Return the seconds a step of each way, and the ratios."""
    shape, device = config.backbone.nano, config.backbone.device
    periods = cut(data.load(config.data), config.data, config.periods)
    with tempfile.TemporaryDirectory() as root:
        backbone = load(config.backbone, nano.build(periods, shape, config.prompt, Path(root)))
    model = AdaptedBackbone(backbone, lora)
    shared = Encoder(backbone.tokenizer, config.prompt, periods.titles)(periods.rows(1, "train").take(slice(0, batch)))
    own = apart(shared, np.random.default_rng(0).normal(size=(batch, WIDTH)).astype(np.float32))
    seconds: dict[str, list[float]] = {}

    def note(name: str, encoded: Encoded) -> None:
        model.reset(0)
        model.train()
        step(model, encoded, batch)  # warm up
        seconds.setdefault(name, []).append(min(step(model, encoded, batch) for _ in range(3)))

    ways: dict[str, tuple[str | None, Encoded]] = {
        "plain": (None, own), "plain_shared_prefix": (None, shared), "products": ("products", own),
        "factors": ("factors", own),
    }  # fmt: skip
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(ways)):
            mix, encoded = ways[name]
            with personal(model, GateConfig(members=members, mix=mix) if mix else None, WIDTH):
                note(name, encoded)
    return {
        "seconds_a_step": {name: float(np.median(values)) for name, values in seconds.items()},
        "over_plain": {mix: ratio(seconds, mix, "plain") for mix in MIXES},
        "over_plain_with_a_shared_prefix": {mix: ratio(seconds, mix, "plain_shared_prefix") for mix in MIXES},
        "floor": ratio(seconds, "plain", "plain_shared_prefix"),
        "tokens_a_prompt": float(own.lengths.mean()),
        "prefix": len(shared.prefix),
        "shape": shape.model_dump(),
        "rank": lora.rank,
        "members": members,
        "batch": batch,
        "rounds": rounds,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log", help="folder of a MovieLens log (default: the synthetic stream)")
    parser.add_argument("--json", help="where the result goes, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    words = 6000 if args.log else 768
    shape = NanoConfig(
        hidden=args.hidden, layers=args.layers, heads=max(1, args.hidden // 64), epochs=0, vocabulary=words
    )
    log = DataConfig(format="movielens", path=args.log, keep_last=20_000) if args.log else DataConfig()
    config = Experiment(data=log, backbone=BackboneConfig(nano=shape, device=args.device))
    lora = LoraSettings(rank=args.rank, alpha=2.0 * args.rank)
    result = json.dumps(measure(config, lora, args.members, args.batch, args.rounds), indent=1)
    print(result)
    if args.json:
        Path(args.json).write_text(result + "\n")


if __name__ == "__main__":
    main()
