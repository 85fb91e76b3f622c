"""The running application on the session's cluster, two replicas and a tiny backbone, and the same models offline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone.load import load
from lsat_ray.config import Experiment, ServeConfig
from lsat_ray.data.periods import Periods, Slice
from lsat_ray.data.windows import Samples
from lsat_ray.prompts.encode import Encoder
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.recommender import Recommender

PORT, REPLICAS = 18431, 2
TOKEN = {"LSAT_TEST_TOKEN": "correct horse battery staple"}
URL = f"http://127.0.0.1:{PORT}"
BEARER = {"Authorization": f"Bearer {TOKEN['LSAT_TEST_TOKEN']}"}


@dataclass
class Endpoint:
    """The running application, and the same models beside it, offline."""

    handle: Any
    run_dir: Path
    store: AdapterStore
    adapters: list[str]
    samples: Samples
    titles: tuple[str, ...]
    offline: Recommender
    encoder: Encoder
    config: Experiment
    version: int = 0
    known: dict[str, np.ndarray] = field(default_factory=dict)

    def publish(self, *models: Model) -> None:
        from lsat_ray.distributed.serving import publish

        self.version += 1
        publish(self.handle, models, self.version, REPLICAS, self.run_dir, timeout_s=60)

    def expected(self, model: Model) -> np.ndarray:
        """Return the offline scores of the samples."""
        if model.digest not in self.known:
            self.offline.prepare([model])
            self.known[model.digest] = self.offline.scores([model], self.encoder(self.samples))[0]
        return self.known[model.digest]

    def question(self, i: int, **more: Any) -> dict[str, Any]:
        past = zip(self.samples.history_item[i], self.samples.history_label[i], strict=True)
        history = [{"title": self.titles[k], "liked": bool(y)} for k, y in past]
        return {"history": history, "target": self.titles[self.samples.item[i]], **more}


def eventually(what: str, attempt: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Return the first true value of `attempt`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if value := attempt():
                return value
        except (RayError, RayServeException, TimeoutError):
            pass
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


def random_adapter(model: AdaptedBackbone, seed: int) -> Adapter:
    """Return an adapter that changes scores visibly."""
    model.reset(seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.slot_parameters().items():
        if ".lora_B." in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.snapshot()


def running(
    tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, run_dir: Path
) -> Iterator[Endpoint]:
    """Start the application and end it."""
    from lsat_ray.distributed.serving import start, stop

    os.environ.update(TOKEN)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    serve = ServeConfig(port=PORT, replicas=REPLICAS, token_env="LSAT_TEST_TOKEN", deadline_s=20)
    config = tiny_experiment.model_copy(update={"serve": serve})
    backbone = load(config.backbone, tiny_backbone_folder)
    model = AdaptedBackbone(backbone, config.lora)
    store = AdapterStore(run_dir / "adapters")
    adapters = []
    for seed in range(4):
        spec = AdapterSpec(
            backbone.fingerprint,
            tiny_periods.fingerprint,
            (Slice(1, "train"),),
            (Slice(1, "validation"),),
            config.prompt,
            config.lora,
            config.recipe,
            seed,
        )
        store.publish(spec, random_adapter(model, seed), {}, "tiny")
        adapters.append(spec.digest)
    samples = tiny_periods.samples.take(tiny_periods.span(2))
    handle = start(config, tiny_backbone_folder, tiny_periods.titles, store.root, run_dir)
    offline = Recommender(model, store, config.engine.batch_tokens)
    encoder = Encoder(backbone.tokenizer, config.prompt, tiny_periods.titles)
    yield Endpoint(handle, run_dir, store, adapters, samples, tiny_periods.titles, offline, encoder, config)
    stop(config)
    torch.set_num_threads(threads)
