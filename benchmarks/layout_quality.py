"""Measure what the faster layouts cost in AUC: one adapter a layout and seed, tested on the periods that follow.

    python benchmarks/layout_quality.py --log $LSAT_RAY_DATA/ml-latest-small --json benchmarks/results/quality.json

Every layout is run on a nano backbone that was built in it (`own`) and on the one that was built in the exact layout
(`exact`); `longer` is `own` with three times the passes over the log in batches of 128 targets, and twice the epochs of
the adapter: targets that share a history teach less each, and cost less. Adapters are fit on D_1..D_(m-1) and their
epoch selected on D_m; the figure is the mean AUC over the periods after m, and `gap` is that of the exact layout
(`own`) minus it, over the same seeds. Shared histories are for training: scoring is fresh. A run that was broken off
goes on after the rows that its JSON holds; move that file away to measure them anew.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from lsat_ray import data
from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.backbone import load, nano
from lsat_ray.config import (
    BackboneConfig,
    DataConfig,
    EngineConfig,
    Experiment,
    LoraSettings,
    NanoConfig,
    PeriodsConfig,
    PromptConfig,
    Recipe,
)
from lsat_ray.data.periods import Periods, Slice, cut
from lsat_ray.prompts.encode import Encoder
from lsat_ray.scoring.score import score
from lsat_ray.training.fit import TorchEngine, fit

LAYOUTS = {
    "exact": PromptConfig(),
    "shared-history(8)": PromptConfig(layout="shared-history", targets=8),
    "stream(32)": PromptConfig(layout="stream", targets=32),
    "stream(16)": PromptConfig(layout="stream", targets=16),
}
RUNS = (
    ("exact", "own"),
    ("shared-history(8)", "own"),
    ("shared-history(8)", "exact"),
    ("stream(32)", "own"),
    ("stream(32)", "exact"),
    ("exact", "longer"),
    ("shared-history(8)", "longer"),
    ("stream(16)", "longer"),
    ("stream(32)", "longer"),
    ("stream(16)", "own"),
)


def experiment(name: str, log: str | None, toy: bool) -> Experiment:
    """Return the config of one data set: 16 periods, of which the first m are trained on."""
    rows = 480 if toy else 9600
    shape = NanoConfig(hidden=32, epochs=0.5, vocabulary=400, rows=400) if toy else NanoConfig(rows=8000)
    if name == "synthetic":
        source = DataConfig(keep_last=rows)
    else:
        source = DataConfig(format="movielens", path=log, keep_last=rows)
    return Experiment(
        data=source, periods=PeriodsConfig(number=16), backbone=BackboneConfig(nano=shape, device="cpu"), name=name
    )


def run(
    config: Experiment, periods: Periods, layout: str, built: str, seeds: list[int], root: Path, epochs: int
) -> dict[str, Any]:
    """Fit and test one layout on one backbone; return AUC by seed and seconds."""
    long = config.replay.long_periods
    prompt = LAYOUTS[layout]
    build_prompt = LAYOUTS["exact" if built == "exact" else layout]
    shape = config.backbone.nano
    if built == "longer":
        shape, epochs = shape.model_copy(update={"epochs": 3 * shape.epochs, "batch_size": 128}), 2 * epochs
    began = time.perf_counter()
    folder = nano.build(periods, shape, build_prompt, root, threads=torch.get_num_threads())
    construction = time.perf_counter() - began
    backbone = load.load(config.backbone, folder)
    model = AdaptedBackbone(backbone, LoraSettings())
    encoder = Encoder(backbone.tokenizer, prompt, periods.titles)
    slices = tuple(Slice(t, "all") for t in range(1, long))
    train = encoder(periods.select(slices))
    validation = encoder.scoring(periods.rows(long))
    tests = [encoder.scoring(periods.rows(t)) for t in range(long + 1, periods.count + 1)]
    recipe = Recipe(epochs=epochs, patience=epochs)
    result: dict[str, Any] = {
        "layout": layout,
        "backbone": built,
        "auc": [],
        "validation": [],
        "tokens_per_target": 0.0,
    }
    result["tokens_per_target"] = len(train.tokens) / len(train.row)
    result["targets_per_sequence"] = len(train.row) / len(train)
    result["frozen"] = float(np.mean([roc_auc_score(t.label, score(model, None, t)) for t in tests]))
    speed, seconds = [], []
    for seed in seeds:
        spec = AdapterSpec(
            backbone.fingerprint,
            periods.fingerprint,
            slices,
            (Slice(long, "all"),),
            prompt,
            LoraSettings(),
            recipe,
            seed,
        )
        fitted = fit(spec, model, train, validation, TorchEngine(), EngineConfig(kind="torch"))
        result["auc"].append(float(np.mean([roc_auc_score(t.label, score(model, fitted.adapter, t)) for t in tests])))
        speed.append(fitted.targets / fitted.seconds["train"])
        seconds.append(fitted.seconds["train"])
        result["validation"].append([auc for _, _, auc in fitted.history])
    result["mean"], result["std"] = float(np.mean(result["auc"])), float(np.std(result["auc"]))
    result["targets_per_s"] = float(np.median(speed))
    result["seconds"] = {"construction": round(construction, 1), "adapter": round(float(np.median(seconds)), 1)}
    return result


def main() -> None:
    """Run all layouts on the synthetic stream and, where a log is given, on it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", help="folder of a MovieLens log")
    parser.add_argument("--only", choices=["synthetic", "movielens"], help="one data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, help="keeps backbones between runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--toy", action="store_true", help="tiny: checks that the script runs")
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(options.threads)
    names = [options.only] if options.only else ["synthetic", *(["movielens"] if options.log else [])]
    tree: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "seeds": options.seeds, "data": {}}
    if options.json and options.json.exists():
        kept = json.loads(options.json.read_text())
        tree = kept if kept["seeds"] == options.seeds else tree
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            config = experiment(name, options.log, options.toy)
            periods = cut(data.load(config.data), config.data, config.periods)
            rows: list[dict[str, Any]] = tree["data"].setdefault(name, [])
            for layout, built in RUNS[len(rows) :]:
                began = time.perf_counter()
                row = run(
                    config, periods, layout, built, options.seeds, options.work or Path(temporary), options.epochs
                )
                rows.append(row | {"gap": (rows[0] if rows else row)["mean"] - row["mean"]})
                last = rows[-1]
                print(
                    f"{name:10} {layout:18} on {built:6} AUC {last['mean']:.4f} +- {last['std']:.4f} "
                    f"gap {last['gap']:+.4f} frozen {last['frozen']:.4f} {last['targets_per_s']:.0f} targets/s "
                    f"({time.perf_counter() - began:.0f} s)",
                    flush=True,
                )
                if options.json:
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    options.json.write_text(json.dumps(tree, indent=2) + "\n")


if __name__ == "__main__":
    main()
