"""What does the tasks of the next-item task: in a training session on Ray, or in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lsat_ray.backbone.load import on_this_machine
from lsat_ray.config import EngineConfig
from lsat_ray.generative.sasrec import SasrecSpec
from lsat_ray.generative.spec import GenerativeSpec
from lsat_ray.generative.study import Bench, load_blocks
from lsat_ray.runs.tasks import Context, Find, Fit, Task


class BlockWorker:
    """The log and the model, loaded once, and the tasks; a fit is one process of plain torch.

    All that is made lies in the run's stores; a result says how long it took.
    """

    def __init__(self, context: Context, settings: EngineConfig, say: Callable[[str], None]) -> None:
        """Read the log and load the model.

        Args:
            context: config, backbone and store.
            settings: of the engine.
            say: hears a line per model.

        Raises:
            LsatError: when this machine does not see the log or the backbone.
        """
        config = context.config.model_copy(update={"engine": settings})
        folder = on_this_machine(config.backbone, Path(context.backbone))
        self.bench = Bench(config, load_blocks(config), Path(context.store).parent, folder, say)
        self.bench.model  # noqa: B018 - loaded here, before the first task

    @property
    def settings(self) -> EngineConfig:
        """Of the engine."""
        return self.bench.engine

    @settings.setter
    def settings(self, value: EngineConfig) -> None:
        self.bench.engine = value

    def run(self, task: Task) -> dict[str, Any]:
        """Do a task."""
        start, began, stage = time.time(), time.perf_counter(), "train"
        match task:
            case Fit(spec=GenerativeSpec() | SasrecSpec() as spec):
                self.bench.train(spec)
            case Find():
                stage, name = "score", self.bench.find(task.row, task.seed, task.as_of, task.beams)
                assert name == task.key, f"{task.name}: driver and worker mean different searches"
            case _:
                raise AssertionError(f"{task.name}: not of the next-item task")
        return {"value": None, "start": start, "seconds": {stage: time.perf_counter() - began}, "targets": 0}
