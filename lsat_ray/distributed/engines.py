"""Which engine a worker trains with, which ZeRO stage, and how its backbone is split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsat_ray.config import EngineConfig
from lsat_ray.runs.tasks import Context

if TYPE_CHECKING:
    from lsat_ray.backbone.sharding import Sharding
    from lsat_ray.training.engine import Engine


def load(settings: EngineConfig) -> None:
    """Import what the first task needs, which takes seconds that a session has while the driver builds the backbone."""
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    from lsat_ray.runs import worker  # noqa: F401

    if settings.kind != "torch":
        from lsat_ray.distributed.deepspeed_engine import library

        library()


def stage(settings: EngineConfig, context: Context, rank: int) -> int:
    """Return the ZeRO stage; where it was left open it follows from the backbone's shape, and rank 0 says why."""
    if settings.kind == "torch" or settings.zero != "auto":
        return 0 if settings.zero == "auto" else settings.zero
    from lsat_ray.backbone.load import on_this_machine, outline, pick_device
    from lsat_ray.training import memory

    config = context.config
    folder = on_this_machine(config.backbone, Path(context.backbone))
    model = memory.dressed(outline(folder, config.backbone), config.lora)
    have = memory.available(pick_device(config.backbone.device), settings)
    chosen, why = memory.choose(model, settings, config.recipe, config.prompt, have)
    if rank == 0:
        print(f"engine.zero auto: {why}", flush=True)  # noqa: T201 - Ray shows it on the driver
    return chosen


def sharding(settings: EngineConfig, stage: int) -> Sharding | None:
    """Return how the backbone is split while it is loaded."""
    if settings.kind == "torch" or stage < 3:
        return None
    from lsat_ray.distributed.deepspeed_engine import Shards

    return Shards()


def make(settings: EngineConfig, stage: int, model: Any) -> Engine:
    """Return the configured engine."""
    if settings.kind == "torch":
        from lsat_ray.training.engine import DataParallel, TorchEngine

        return DataParallel() if settings.workers > 1 else TorchEngine()
    from lsat_ray.distributed.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(stage)
