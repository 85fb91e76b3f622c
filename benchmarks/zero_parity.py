"""Prove that every engine gives the adapter that one process of plain torch gives, and goes on exactly when killed.

Data parallel and ZeRO 0 to 3, any number of workers, with and without accumulation.

    python benchmarks/zero_parity.py --workers 1 2 4 --json benchmarks/results/zero_parity.json

Every row is one training of the same spec in one `TorchTrainer.fit`; `difference` is the largest absolute difference
of any LoRA weight from plain torch's, `relative` that over the largest weight; `resumed_equal` says whether a training
that was interrupted and taken up from its checkpoint ended with the same bytes under the same engine; `held` is the
largest share of the backbone's weights that a worker holds once it is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lsat_ray import data
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.backbone import nano
from lsat_ray.config import Experiment
from lsat_ray.data.periods import Slice, cut

CONFIG = Experiment.model_validate(
    {
        "data": {
            "keep_last": 480,
            "synthetic": {"users": 40, "items": 60, "warmup": 200, "half_life": 240.0, "seed": 3},
        },
        "periods": {"number": 4},
        "backbone": {"device": "cpu", "nano": {"hidden": 32, "vocabulary": 420, "epochs": 0.5}},
        "recipe": {"lr": 5e-3, "batch_size": 25, "epochs": 2, "patience": 9},
        "replay": {"long_periods": 2},
    }
)


def trainings(folder: str, engine: Any, micro_batches: int, states: Path | None = None) -> dict[str, Any]:
    """Train a fresh adapter and one that goes on from it; return both weights and the validation AUCs.

    With a folder for `states` the second one is interrupted after its seventh step, and taken up again.
    """
    import torch

    from lsat_ray.adapters.lora import AdaptedBackbone
    from lsat_ray.backbone.load import load
    from lsat_ray.distributed.deepspeed_engine import Shards
    from lsat_ray.prompts.encode import Encoder
    from lsat_ray.training.checkpoint import Checkpointer
    from lsat_ray.training.fit import fit

    torch.set_num_threads(1)
    periods = cut(data.load(CONFIG.data), CONFIG.data, CONFIG.periods)
    backbone = load(CONFIG.backbone, Path(folder), Shards() if engine.splits else None)
    out: dict[str, Any] = {"held": held(backbone.model, engine)}
    encoder = Encoder(backbone.tokenizer, CONFIG.prompt, periods.titles)
    model = AdaptedBackbone(backbone, CONFIG.lora)
    settings = CONFIG.engine.model_copy(update={"micro_batches": micro_batches})

    def spec(t: int, init: AdapterSpec | None = None) -> AdapterSpec:
        rows = (Slice(t, "train"),)
        check = (Slice(t, "validation"),)
        return AdapterSpec("b", "d", rows, check, CONFIG.prompt, CONFIG.lora, CONFIG.recipe, 0, init)

    first = spec(1)
    fresh = fit(
        first, model, encoder(periods.rows(1, "train")), encoder(periods.rows(1, "validation")), engine, settings
    )
    out["fresh"] = fresh
    second = encoder(periods.rows(2, "train")), encoder(periods.rows(2, "validation"))
    out["warm"] = fit(spec(2, first), model, *second, engine, settings, fresh.adapter)
    if states:
        checkpoint = Checkpointer(states, every=3)
        with suppress(Interrupted):
            fit(spec(2, first), model, *second, mortal(engine, 7), settings, fresh.adapter, checkpoint=checkpoint)
        heard: list[str] = []
        out["resumed"] = fit(
            spec(2, first), model, *second, engine, settings, fresh.adapter, heard.append, checkpoint=checkpoint
        )
        assert heard[0] == "resumed at step 6", heard
    share = out.pop("held")
    return {k: {"state": v.adapter.state, "auc": v.figure, "margin": v.margin, "held": share} for k, v in out.items()}


def held(model: Any, engine: Any) -> float:
    """Return the largest share of a model's weights that any worker holds, on every worker."""
    import numpy as np

    sizes = [(p.ds_tensor.numel() + p.numel(), p.ds_numel) if hasattr(p, "ds_id") else (p.numel(),) * 2
             for p in model.parameters()]  # fmt: skip
    mine = sum(here for here, _ in sizes) / sum(whole for _, whole in sizes)
    return float(engine.gather(np.array([mine])).max())


class Interrupted(Exception):
    """What a kill looks like from inside."""


def mortal(engine: Any, steps: int) -> Any:
    """Let an engine die, on all ranks, after so many steps; between steps, as ZeRO-3 can only be let go there."""
    take, left = engine.step, [steps]

    def step(lr: float) -> None:
        take(lr)
        left[0] -= 1
        if left[0] == 0:
            engine.step = take
            engine.finish()
            raise Interrupted

    engine.step = step
    return engine


def loop(config: dict[str, Any]) -> None:
    """Train under every stage in one group of workers; rank 0 keeps the results."""
    from lsat_ray.distributed.deepspeed_engine import DeepSpeedEngine
    from lsat_ray.training.engine import DataParallel

    results = {}
    engines: dict[str, Callable[[], Any]] = {"data-parallel": DataParallel}
    engines |= {f"zero{z}": partial(DeepSpeedEngine, z) for z in config["stages"]}
    for name, make in engines.items():
        for micro_batches in (1, 2):
            engine = make()
            states = Path(config["folder"]) / f"{name}-{micro_batches}" if micro_batches == 2 else None
            results[f"{name}-micro{micro_batches}"] = trainings(config["folder"], engine, micro_batches, states)
    if engine.rank == 0:
        import ray

        ray.get(config["sink"].put.remote(results))


def measure(stages: list[int], workers: int) -> list[dict[str, Any]]:
    """Return a row per (stage, micro-batches, kind of training)."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from lsat_ray.training.fit import TorchEngine

    class Sink:
        def __init__(self) -> None:
            self.value: Any = None

        def put(self, value: Any) -> None:
            self.value = value

        def get(self) -> Any:
            return self.value

    with tempfile.TemporaryDirectory() as folder:
        periods = cut(data.load(CONFIG.data), CONFIG.data, CONFIG.periods)
        backbone = str(nano.build(periods, CONFIG.backbone.nano, CONFIG.prompt, Path(folder)))
        plain = trainings(backbone, TorchEngine(), 1)
        sink = ray.remote(Sink).options(num_cpus=0).remote()
        TorchTrainer(
            loop,
            train_loop_config={"stages": stages, "folder": backbone, "sink": sink},
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.25}),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(name="parity", storage_path=folder),
        ).fit()
        zero = ray.get(sink.get.remote())
    rows = []
    for name, kinds in zero.items():
        whole, resumed = kinds["warm"], kinds.pop("resumed", None)
        equal = None if resumed is None else all((resumed["state"][k] == v).all() for k, v in whole["state"].items())
        for kind, found in kinds.items():
            reference = plain[kind]
            difference = max(float((found["state"][k] - v).abs().max()) for k, v in reference["state"].items())
            largest = max(float(v.abs().max()) for v in reference["state"].values())
            empty = any(float(v.abs().max()) == 0 for v in found["state"].values())
            rows.append(
                {
                    "engine": name,
                    "training": kind,
                    "workers": workers,
                    "difference": difference,
                    "relative": difference / largest,
                    "margin_difference": float(abs(found["margin"] - reference["margin"]).max()),
                    "some_weight_is_zero": empty,
                    "held": found["held"],
                    "resumed_equal": None if equal is None else bool(equal),
                }
            )
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from lsat_ray.distributed.cluster import connect, disconnect

    connect()
    rows = [row for workers in args.workers for row in measure(args.stages, workers)]
    disconnect()
    for row in rows:
        print(
            f"{row['engine']:14} {row['training']:6} workers {row['workers']}  difference {row['difference']:.2e}  "
            f"relative {row['relative']:.2e}  margin {row['margin_difference']:.2e}  "
            f"zero {row['some_weight_is_zero']}  resumed equal {row['resumed_equal']}  held {row['held']:.2f}"
        )
    if args.json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, gloo"
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
