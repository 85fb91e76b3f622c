"""One rank of a training session: the backbone, loaded once, and the tasks that it can do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone.load import load
from lsat_ray.baselines import classical
from lsat_ray.baselines.in_context import InContext, score_margins
from lsat_ray.config import EngineConfig
from lsat_ray.data.periods import Slice
from lsat_ray.data.windows import concatenate
from lsat_ray.prompts.batch import Encoded, join
from lsat_ray.prompts.encode import Encoder
from lsat_ray.runs.tasks import (
    ClassicalFit,
    ClassicalScore,
    Coefficients,
    Context,
    Fit,
    InContextScore,
    Score,
    Task,
)
from lsat_ray.scoring.recommender import Recommender
from lsat_ray.scoring.score import score
from lsat_ray.training.checkpoint import Checkpointer
from lsat_ray.training.coefficients import fit_coefficients
from lsat_ray.training.fit import DataParallel, Engine, TorchEngine, fit, sharded_margins
from lsat_ray.training.memory import available, choose


class Worker:
    """Every rank does every task with its group; what rank 0 returns counts."""

    def __init__(self, context: Context, engine: EngineConfig, rank: int) -> None:
        torch.set_num_threads(engine.threads)
        self.context = context
        self.settings = engine
        self.rank = rank
        backbone = load(context.config.backbone, Path(context.backbone))
        self.encoder = Encoder(backbone.tokenizer, context.config.prompt, context.titles)
        self.model = AdaptedBackbone(backbone, context.config.lora, engine.checkpointing, engine.packing)
        self.store = AdapterStore(Path(context.store))
        self.recommender = Recommender(self.model, self.store, engine.batch_tokens)
        self.engine = self._engine()
        self.states = Checkpointer(self.store.root.parent / "train" / "states", engine.checkpoint_every)
        self._encoded: dict[tuple[Slice, bool], Encoded] = {}

    def run(self, task: Task) -> Any:
        """Do a task."""
        match task:
            case Fit():
                return self._fit(task)
            case Score():
                return self._score(task)
            case Coefficients():
                return self._coefficients(task)
            case ClassicalFit():
                return self._classical_fit(task) if self.rank == 0 else None
            case ClassicalScore():
                return self._classical_score(task) if self.rank == 0 else None
            case InContextScore():
                return self._in_context(task) if self.rank == 0 else None

    def encode(self, slices: tuple[Slice, ...], as_of: int, scoring: bool = False) -> Encoded:
        """Read slices through the replayer and encode each once, for training or as the endpoint would score them.

        Where targets share a sequence the slices of a training set are encoded together, in the order of the stream.
        """
        if not scoring and self.context.config.prompt.layout != "exact":
            samples = concatenate(ray.get(ray.get(self.context.replayer.read.remote(list(slices), as_of))))
            return self.encoder(samples.take(np.argsort(samples.row, kind="stable")))
        missing = [s for s in slices if (s, scoring) not in self._encoded]
        if missing:
            refs = ray.get(self.context.replayer.read.remote(missing, as_of))
            for s, samples in zip(missing, ray.get(refs), strict=True):
                self._encoded[s, scoring] = self.encoder.scoring(samples) if scoring else self.encoder(samples)
        return join([self._encoded[s, scoring] for s in slices])

    def _engine(self) -> Engine:
        """Return the configured engine; rank 0 says which ZeRO stage was chosen where that was left open."""
        settings = self.settings
        if settings.kind == "torch":
            return DataParallel() if settings.workers > 1 else TorchEngine()
        from lsat_ray.distributed.deepspeed_engine import DeepSpeedEngine

        if settings.zero != "auto":
            return DeepSpeedEngine(settings.zero)
        config, memory = self.context.config, available(self.model.device, settings)
        stage, why = choose(self.model, settings, config.recipe, config.prompt, memory)
        if self.rank == 0:
            print(f"engine.zero auto: {why}", flush=True)  # noqa: T201 - Ray shows it on the driver
        return DeepSpeedEngine(stage)

    def _tell(self, line: str) -> None:
        """Print whether an interrupted training is resumed; the rest of its progress stays in its facts."""
        if self.rank == 0 and line.startswith(("resumed", "not resumed")):
            print(f"training: {line}", flush=True)  # noqa: T201 - Ray shows it on the driver

    def _fit(self, task: Fit) -> dict[str, Any]:
        spec = task.spec
        if spec.digest in self.store:
            return dict(self.store.manifest(spec.digest)["facts"])
        began, start = time.perf_counter(), time.time()
        train = self.encode(spec.train, task.as_of)
        validation = self.encode(spec.validation, task.as_of, scoring=True)
        if spec.replay:
            newest = max(s.period for s in spec.train)
            ref = self.context.replayer.replayed.remote(newest, spec.replay, spec.seed, task.as_of)
            earlier = ray.get(ray.get(ref))
            train = join([train, self.encoder(earlier)]) if len(earlier) else train
        initial = self.store.load(spec.init.digest) if spec.init else None
        frozen = [self.store.load(s.digest) for s in spec.frozen.adapters] if spec.frozen else []
        read = time.perf_counter() - began
        fitted = fit(
            spec,
            self.model,
            train,
            validation,
            self.engine,
            self.settings,
            initial,
            self._tell,
            frozen,
            self.states,
        )
        facts = fitted.facts()
        if self.rank == 0:
            base = self.context.config.backbone.path
            self.store.publish(spec, fitted.adapter, facts, base, by_row(validation.row, fitted.margin))
            self.states.clear(spec.digest)
        return {**facts, "seconds": {"encode": read, **fitted.seconds}, "start": start}

    def _score(self, task: Score) -> tuple[np.ndarray, list[np.ndarray]]:
        encoded = self.encode(task.slices, task.as_of, scoring=True)
        self.recommender.prepare([task.model])
        out = []
        for _, adapter in self.recommender.passes(task.model):
            if self.engine.world == 1:
                out.append(score(self.model, adapter, encoded, self.settings.batch_tokens))
                continue
            with self.engine.whole(self.model):
                if adapter is not None:
                    self.model.wear(adapter)
            self.engine.begin(self.model, self.context.config.recipe, 1)
            if adapter is None:
                with self.model.bare():
                    out.append(sharded_margins(self.model, self.engine, encoded, self.settings.batch_tokens))
            else:
                out.append(sharded_margins(self.model, self.engine, encoded, self.settings.batch_tokens))
            self.engine.finish()
        self.model.eval()
        return np.sort(encoded.row), [by_row(encoded.row, margin)[1] for margin in out]

    def _coefficients(self, task: Coefficients) -> tuple[float, ...]:
        adapters = [self.store.load(d) for d in task.adapters]
        rows = self.encode(task.slices, task.as_of)
        return fit_coefficients(self.model, adapters, rows, task.pull, batch_tokens=self.settings.batch_tokens)

    def _classical_fit(self, task: ClassicalFit) -> dict[str, Any]:
        spec = task.spec
        if spec.digest in self.store:
            return dict(self.store.manifest(spec.digest)["facts"])
        start = time.time()
        periods = ray.get(ray.get(self.context.replayer.view.remote(task.as_of)))
        initial = self.store.load_state(spec.init.digest) if spec.init else None
        fitted = classical.fit(spec, periods, initial)
        rows = periods.select(spec.validation).row
        targets = len(periods.select(spec.train)) * fitted.epochs
        facts = {"epochs": fitted.epochs, "best_step": fitted.best_epoch, "targets": targets}
        self.store.publish_state(spec.digest, spec.manifest(), fitted.state, facts, (rows, fitted.validation_scores))
        return {**facts, "seconds": {"train": time.time() - start}, "start": start}

    def _classical_score(self, task: ClassicalScore) -> np.ndarray:
        periods = ray.get(ray.get(self.context.replayer.view.remote(task.period)))
        state = self.store.load_state(task.spec.digest)
        return classical.score(task.spec, state, periods, periods.rows(task.period))

    def _in_context(self, task: InContextScore) -> np.ndarray:
        periods = ray.get(ray.get(self.context.replayer.view.remote(task.period)))
        setup = InContext(item_word=self.context.config.prompt.item_word, demonstrations=task.demonstrations)

        def margins(texts: list[str]) -> np.ndarray:
            encoded = texts_only(self.encoder, texts)
            return score(self.model, None, encoded, self.settings.batch_tokens)

        return score_margins(setup, margins, periods, task.period - 1, periods.rows(task.period))


def by_row(row: np.ndarray, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and margins in the order of the stream, whatever order a layout put them in."""
    order = np.argsort(row, kind="stable")
    return row[order], margin[order]


def texts_only(encoder: Encoder, texts: list[str]) -> Encoded:
    """Encode whole prompts as they are, one target each, without a shared prefix."""
    opening = [] if encoder.tokenizer.bos_token_id is None else [encoder.tokenizer.bos_token_id]
    ids = [opening + tokens for tokens in encoder.pieces(texts)]
    offsets = np.cumsum([0] + [len(i) for i in ids])
    index = np.arange(len(ids), dtype=np.int64)
    return Encoded(
        prefix=np.empty(0, np.int32),
        tokens=np.array([t for i in ids for t in i], dtype=np.int32),
        offsets=offsets,
        answer=offsets[1:] - 1,
        sequence=index,
        row=index,
        label=np.zeros(len(ids), np.uint8),
    )
