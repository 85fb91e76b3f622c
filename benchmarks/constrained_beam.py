"""Measure beam search in the trie against scoring every item, on a catalogue of any size.

    python benchmarks/constrained_beam.py --json result.json
    python benchmarks/constrained_beam.py --blocks $LSAT_RAY_DATA/amazon-blocks/video_games --rows 8

The backbone has random weights: time does not depend on them. Exhaustive scoring shares a history's keys and values
among all items, as the beam does among its beams, and scores each semantic ID once. Both ways are measured in turns;
seconds are of processor time, so that other work on the machine counts little.
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

from lsat_ray.config import BackboneConfig, LoraSettings, NanoConfig
from lsat_ray.generative import backbone, synthetic
from lsat_ray.generative.blocks import Blocks, read
from lsat_ray.generative.encode import encode_histories
from lsat_ray.generative.model import GenerativeModel
from lsat_ray.generative.search import beam_search, score_items
from lsat_ray.generative.trie import Trie


def measure(
    log: Blocks, hidden: int, layers: int, width: int, rows: int, batch: int, device: str, rounds: int
) -> dict[str, Any]:
    """Return seconds a history of both ways (medians over rounds), and how far their results agree."""
    shape = NanoConfig(hidden=hidden, layers=layers, heads=4, context=1024, epochs=0)
    with tempfile.TemporaryDirectory() as root:
        folder = backbone.build(log, shape, Path(root))
        loaded = backbone.load(BackboneConfig(device=device), folder, log, text=False)
    clock = time.process_time if device == "cpu" else time.perf_counter
    model = GenerativeModel(loaded, LoraSettings())
    model.reset(0)
    trie = Trie.build(log.codes)
    tests = log.rows(2, "test")
    few = encode_histories(log, tests[:rows], model.codes, 20)
    many = encode_histories(log, np.resize(tests, batch), model.codes, 20)
    beam_search(model, few, trie, width)  # warm up
    beam, exhaustive = np.empty(rounds), np.empty(rounds)
    for turn in range(rounds):
        began = clock()
        beam_search(model, many, trie, width)
        beam[turn] = (clock() - began) / batch
        began = clock()
        every = score_items(model, few, trie.ids)
        exhaustive[turn] = (clock() - began) / rows
    ratio = exhaustive / beam
    found = beam_search(model, few, trie, width)
    truth = np.argsort(-every, axis=1)[:, :width]
    overlap = np.mean([len(set(a) & set(b)) / width for a, b in zip(found.leaf, truth, strict=True)])
    return {
        "items": len(log.items),
        "semantic_ids": len(trie),
        "hidden": hidden,
        "layers": layers,
        "width": width,
        "histories": {"beam": batch, "exhaustive": rows},
        "rounds": rounds,
        "seconds_a_history": {"beam": float(np.median(beam)), "exhaustive": float(np.median(exhaustive))},
        "speedup": float(np.median(ratio)),
        "speedup_range": [float(ratio.min()), float(ratio.max())],
        "overlap_with_the_true_best": float(overlap),
        "certain_results": float(found.certain.mean()),
        "device": device,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", help="folder of blocks and semantic IDs (default: a synthetic catalogue)")
    parser.add_argument("--items", type=int, default=20_000, help="of the synthetic catalogue")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=10)
    parser.add_argument("--rows", type=int, default=8, help="histories that are scored exhaustively")
    parser.add_argument("--batch", type=int, default=256, help="histories that are searched")
    parser.add_argument("--rounds", type=int, default=5, help="turns of both ways")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for the result")
    args = parser.parse_args()
    log = read(args.blocks) if args.blocks else synthetic.generate(items=args.items, size=32)
    result = measure(log, args.hidden, args.layers, args.width, args.rows, args.batch, args.device, args.rounds)
    text = json.dumps({"catalogue": Path(args.blocks).name if args.blocks else "synthetic", **result}, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
