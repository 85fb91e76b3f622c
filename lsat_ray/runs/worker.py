"""One rank of a training session: the backbone, loaded once, and the tasks that it can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone.load import base_name, load, on_this_machine
from lsat_ray.backbone.sharding import Sharding
from lsat_ray.baselines import classical
from lsat_ray.baselines.in_context import InContext, score_margins
from lsat_ray.baselines.spec import ClassicalSpec
from lsat_ray.config import EngineConfig
from lsat_ray.data.past import few
from lsat_ray.data.periods import Slice
from lsat_ray.data.stream import Reader
from lsat_ray.data.windows import concatenate
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded, join
from lsat_ray.prompts.encode import Encoder
from lsat_ray.runs.reclora import Reclora
from lsat_ray.runs.tasks import Coefficients, Context, Fit, Score, Task
from lsat_ray.scoring.model import CLASSICAL, IN_CONTEXT, RECLORA
from lsat_ray.scoring.recommender import Recommender
from lsat_ray.scoring.score import score
from lsat_ray.training import memory
from lsat_ray.training.checkpoint import Checkpointer
from lsat_ray.training.coefficients import fit_coefficients
from lsat_ray.training.engine import Engine
from lsat_ray.training.fit import fit, sharded_margins


class Worker:
    """Every rank does every task with its group; what rank 0 returns counts.

    A result is a dictionary: `value`, what was asked for, and where time was spent `start`, `seconds` by stage and
    `targets`.
    """

    def __init__(
        self,
        context: Context,
        settings: EngineConfig,
        reader: Reader,
        engine: Callable[[AdaptedBackbone], Engine],
        say: Callable[[str], None],
        sharding: Sharding | None = None,
    ) -> None:
        """Load the backbone.

        Args:
            context: config, backbone, store and titles.
            settings: of the engine.
            reader: of the stream.
            engine: makes the engine, once the model is there.
            say: hears that a training goes on where it was interrupted.
            sharding: how the backbone is split over workers; not at all when None.

        Raises:
            LsatError: when this machine does not see the backbone, or its GPU is too small to train it.
        """
        torch.set_num_threads(settings.threads)
        self.context, self.settings, self.reader = context, settings, reader
        folder = on_this_machine(context.config.backbone, Path(context.backbone))
        memory.check(context.config.model_copy(update={"engine": settings}), folder)
        backbone = load(context.config.backbone, folder, sharding)
        self.encoder = Encoder(backbone.tokenizer, context.config.prompt, context.titles)
        self.model = AdaptedBackbone(backbone, context.config.lora, settings.checkpointing, settings.packing)
        self.store = AdapterStore(Path(context.store))
        self.recommender = Recommender(self.model, self.store, settings.batch_tokens)
        self.engine = engine(self.model)
        self.states = Checkpointer(self.store.root.parent / "train" / "states", settings.checkpoint_every)
        self.reclora = Reclora(self.reader, self.encoder, self.model, self.store)
        self._say = say
        self._encoded: dict[tuple[Slice, bool], Encoded] = {}

    def run(self, task: Task) -> dict[str, Any]:
        """Do a task."""
        start, began = time.time(), time.perf_counter()
        match task:
            case Fit():
                return {"start": start, **self._fit(task)}
            case Score():
                value: Any = self._score(task)
            case Coefficients():
                value = self._coefficients(task)
        return {"value": value, "start": start, "seconds": {"score": time.perf_counter() - began}, "targets": 0}

    def encode(self, slices: Sequence[Slice], as_of: int, scoring: bool = False) -> Encoded:
        """Read slices and encode each once, for training or as the endpoint would score them.

        Where targets share a sequence the slices of a training set are encoded together, in the order of the stream.
        """
        if not scoring and self.context.config.prompt.layout != "exact":
            samples = concatenate(self.reader.read(slices, as_of))
            return self.encoder(samples.take(np.argsort(samples.row, kind="stable")))
        missing = [s for s in slices if (s, scoring) not in self._encoded]
        if missing:
            for s, samples in zip(missing, self.reader.read(missing, as_of), strict=True):
                self._encoded[s, scoring] = self.encoder.scoring(samples) if scoring else self.encoder(samples)
        return join([self._encoded[s, scoring] for s in slices])

    # fit

    def _fit(self, task: Fit) -> dict[str, Any]:
        spec = task.spec
        if self._told(spec.digest in self.store):
            return {"value": None, "seconds": {}, "targets": 0}
        if isinstance(spec, ClassicalSpec):
            return self._fit_classical(spec) if self.engine.rank == 0 else {}
        assert isinstance(spec, AdapterSpec)
        return self._fit_adapter(spec, task.as_of)

    def _told(self, seen: bool) -> bool:
        """Return what rank 0 sees: on shared storage another rank may see a file later, and would go another way."""
        return bool(self.engine.gather(np.array([seen]))[0])

    def _fit_adapter(self, spec: AdapterSpec, as_of: int) -> dict[str, Any]:
        began = time.perf_counter()
        if spec.reclora:
            self._needs_whole("reclora")
            how, rows = spec.reclora.manifest(), concatenate(self.reader.read(spec.train, as_of))
            train = self.reclora.encode(how, few(rows, spec.reclora.rows or len(rows), spec.seed), as_of)
            validation = self.reclora.encode(how, concatenate(self.reader.read(spec.validation, as_of)), as_of)
        else:
            train = self.encode(spec.train, as_of)
            validation = self.encode(spec.validation, as_of, scoring=True)
        if spec.replay:
            earlier = self.reader.replayed(max(s.period for s in spec.train), spec.replay, spec.seed, as_of)
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
        if self.engine.rank == 0:
            base, revision = base_name(self.context.config.backbone, Path(self.context.backbone))
            margins = by_row(validation.row, fitted.margin)
            self.store.publish(spec, fitted.adapter, facts, base, margins, revision)
            self.states.clear(spec.digest)
        return {"value": None, "seconds": {"encode": read, **fitted.seconds}, "targets": fitted.targets}

    def _tell(self, line: str) -> None:
        """Say whether an interrupted training is resumed; the rest of its progress stays in its facts."""
        if self.engine.rank == 0 and line.startswith(("resumed", "not resumed")):
            self._say(f"training: {line}")

    def _fit_classical(self, spec: ClassicalSpec) -> dict[str, Any]:
        began = time.perf_counter()
        periods = self.reader.view(spec.last_period)
        initial = self.store.load_state(spec.init.digest) if spec.init else None
        fitted = classical.fit(spec, periods, initial)
        rows = periods.select(spec.validation).row
        targets = len(periods.select(spec.train)) * fitted.epochs
        facts = {
            "best_step": fitted.best_epoch * fitted.steps // max(1, fitted.epochs),
            "steps": fitted.steps,
            "stopped_by": fitted.stopped_by,
            "targets": targets,
        }
        self.store.publish_state(spec.digest, spec.manifest(), fitted.state, facts, (rows, fitted.validation_scores))
        return {"value": None, "seconds": {"train": time.perf_counter() - began}, "targets": targets}

    # score

    def _score(self, task: Score) -> np.ndarray | None:
        if task.model.merge == CLASSICAL:
            return self._classical(task) if self.engine.rank == 0 else None
        if task.model.merge == IN_CONTEXT:
            return self._in_context(task)
        if task.model.merge == RECLORA:
            self._needs_whole("reclora")
            with self.engine.whole(self.model):
                return self.reclora.score(task.model.adapters[0], task.slice, task.as_of, self.settings.batch_tokens)
        encoded = self.encode([task.slice], task.as_of, scoring=True)
        self.recommender.prepare([task.model])
        ((_, adapter),) = self.recommender.passes(task.model)
        return by_row(encoded.row, self._margins(adapter, encoded))[1]

    def _margins(self, adapter: Any, encoded: Encoded) -> np.ndarray:
        """Return the margins of all targets, each computed by one rank."""
        if len(self.engine.shares) == self.engine.world and not self.engine.splits:
            return score(self.model, adapter, encoded, self.settings.batch_tokens)
        with self.engine.whole(self.model):
            if adapter is not None:
                self.model.wear(adapter)
        self.engine.begin(self.model, self.context.config.recipe, 1)
        if adapter is None:
            with self.model.bare():
                margin = sharded_margins(self.model, self.engine, encoded, self.settings.batch_tokens)
        else:
            margin = sharded_margins(self.model, self.engine, encoded, self.settings.batch_tokens)
        self.engine.finish()
        self.model.eval()
        return margin

    def _classical(self, task: Score) -> np.ndarray:
        """Score with a classical recommender; its features count what came before each sample."""
        (digest,) = task.model.adapters
        periods, spec = self.reader.view(task.as_of), ClassicalSpec.from_manifest(self.store.manifest(digest)["spec"])
        return classical.score(spec, self.store.load_state(digest), periods, periods.rows(*task.slice))

    def _in_context(self, task: Score) -> np.ndarray:
        """Score in context: solved samples of the newest period before stand in the prompt."""
        periods, (demonstrations,) = self.reader.view(task.as_of), task.model.weights
        setup = InContext(item_word=self.context.config.prompt.item_word, demonstrations=int(demonstrations))

        def margins(texts: list[str]) -> np.ndarray:
            return self._margins(None, texts_only(self.encoder, texts))

        return score_margins(setup, margins, periods, task.slice.period - 1, periods.rows(*task.slice))

    def _needs_whole(self, what: str) -> None:
        """Refuse what runs the model outside an engine where its weights are split."""
        if self.engine.splits:
            raise LsatError(f"engine.zero: stage 3 does not carry {what}; use 0, 1 or 2")

    def _coefficients(self, task: Coefficients) -> tuple[float, ...]:
        self._needs_whole("coefficients that are learned by gradient")
        adapters = [self.store.load(d) for d in task.adapters]
        rows = self.encode(task.slices, task.as_of)
        return fit_coefficients(self.model, adapters, rows, task.pull, batch_tokens=self.settings.batch_tokens)


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
