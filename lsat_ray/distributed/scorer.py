"""A replica: the backbone, the models that it serves, and the ones that it has prepared to serve next.

All work on the backbone happens on the replica's event loop, one batch at a time, and a batch holds no `await`: so no
batch can see two versions, and a commit is one assignment between two batches. Reading adapters from disk and
tokenising bulk samples happen on threads beside it. A bulk pauses after every batch, so that HTTP requests and health
checks wait for one forward pass at most.
"""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from fastapi import FastAPI
from ray import ObjectRef, serve

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone.load import load
from lsat_ray.config import BackboneConfig, LoraSettings, PromptConfig
from lsat_ray.data.windows import Samples
from lsat_ray.distributed.endpoint import Refused, build_app
from lsat_ray.distributed.schemas import Answer, Question, ServedModel, ServedModels, samples_of
from lsat_ray.errors import LsatError
from lsat_ray.prompts.encode import Encoder
from lsat_ray.scoring.recommender import Model, Recommender
from lsat_ray.scoring.served import FROZEN, Served, read_current


@dataclass(frozen=True)
class Setup:
    """What a replica is built from; small, for Serve keeps it in the cluster's store."""

    backbone_folder: str
    backbone: BackboneConfig
    lora: LoraSettings
    prompt: PromptConfig
    titles: tuple[str, ...] | ObjectRef
    """Titles of the catalogue, for bulk scoring; HTTP brings its own."""
    store_root: str
    run_dir: str
    """Folder of `current.json`, on storage that every replica sees."""
    history: int
    """Longest history that HTTP may send."""
    batch_tokens: int
    threads: int
    max_batch: int
    batch_wait_s: float
    token_sha256: str | None
    """SHA-256 of the bearer token, hex; the token itself never leaves the driver."""


@dataclass(frozen=True)
class Bulk:
    """Scores of many samples, all by one version."""

    version: int
    scores: dict[str, np.ndarray]
    """float64 [N] of P(like) by name of the model, in the order of the samples."""
    models: dict[str, Model]
    """The models by name, with their periods."""

    @property
    def digest(self) -> dict[str, str]:
        """Digest of each model."""
        return {name: model.digest for name, model in self.models.items()}

    @property
    def period(self) -> dict[str, int]:
        """Period after which each model was made."""
        return {name: model.period for name, model in self.models.items()}


@dataclass(frozen=True)
class Report:
    """What a replica says of itself to the driver."""

    replica: str
    pid: int
    serving: str
    """Digest of what it serves (`Served.digest`)."""
    prepared: str | None
    """Digest of what it would serve next."""
    error: str | None = None
    """Why it refused; it serves what it served before."""


class Scorer:
    """Answer questions over HTTP, score samples in bulk, and change models in two phases."""

    def __init__(self, setup: Setup) -> None:
        import torch

        torch.set_num_threads(setup.threads)
        self.setup = setup
        backbone = load(setup.backbone, Path(setup.backbone_folder))
        store = AdapterStore(Path(setup.store_root))
        self.recommender = Recommender(AdaptedBackbone(backbone, setup.lora), store, setup.batch_tokens)
        titles = ray.get(setup.titles) if isinstance(setup.titles, ObjectRef) else setup.titles
        self.http_encoder = Encoder(backbone.tokenizer, setup.prompt, ())
        # A tokenizer is not safe on two threads: bulk has its own.
        self.bulk_encoder = Encoder(copy.deepcopy(backbone.tokenizer), setup.prompt, titles)
        self.bulk_lock, self.control_lock = asyncio.Lock(), asyncio.Lock()
        self.served = read_current(Path(setup.run_dir)) or Served(0, (FROZEN,))
        self.prepared: Served | None = None
        self.recommender.prepare(self.served.models)
        self._together.set_max_batch_size(setup.max_batch)
        self._together.set_batch_wait_timeout_s(setup.batch_wait_s)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the HTTP routes; Serve calls this after the constructor."""
        return build_app(self, self.setup.token_sha256)

    # HTTP

    async def ask(self, questions: list[Question]) -> list[Answer]:
        """Answer the questions of one HTTP request, together with those of others.

        Raises:
            Refused: when one of them cannot be answered.
        """
        for i, question in enumerate(questions):
            if len(question.history) > self.setup.history:
                field = "history" if len(questions) == 1 else f"requests.{i}.history"
                what = f"{len(question.history)} events, this deployment reads {self.setup.history}"
                raise Refused(field, what, f"send the last {self.setup.history}")
        answer = await self._together(questions)
        if isinstance(answer, Refused):
            raise answer
        return answer

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.003)
    async def _together(self, groups: list[list[Question]]) -> list[list[Answer] | Refused]:
        """Answer a batch; synchronous inside, so that one version answers all of it."""
        try:
            answers = iter(self._answer([q for group in groups for q in group]))
            return [[next(answers) for _ in group] for group in groups]
        except Refused:
            return [self._alone(group) for group in groups]  # one bad question must not fail its neighbours

    def _alone(self, group: list[Question]) -> list[Answer] | Refused:
        try:
            return self._answer(group)
        except Refused as refusal:
            return refusal

    def _answer(self, questions: list[Question]) -> list[Answer]:
        """Score questions, those of a model together, and keep their order."""
        served = self.served
        answers: list[Any] = [None] * len(questions)
        for name in dict.fromkeys(q.strategy for q in questions):
            try:
                model = served.select(name)
            except LsatError as error:
                raise Refused("strategy", f"{name!r} is not served", f"served: {', '.join(served.names)}") from error
            asked = [i for i, q in enumerate(questions) if q.strategy == name]
            titles, samples = samples_of([questions[i] for i in asked])
            try:
                encoded = self.http_encoder.with_titles(titles)(samples)
            except LsatError as error:
                raise Refused("target", str(error), "send a shorter title") from error
            scores = self.recommender.scores([model], encoded)[0]
            shown = name or served.names[0]
            for row, p in zip(encoded.row.tolist(), scores.tolist(), strict=True):
                answers[asked[row]] = Answer(
                    probability=p, strategy=shown, period=model.period, digest=model.digest, version=served.version
                )
        return answers

    def served_models(self) -> ServedModels:
        """Describe what is served."""
        pairs = zip(self.served.models, self.served.names, strict=True)
        return ServedModels(version=self.served.version, models=[ServedModel.of(m, name) for m, name in pairs])

    # Bulk, by the handle

    async def score_bulk(self, samples: Samples, strategies: Sequence[str] | None = None) -> Bulk:
        """Score samples with some served models (all when None), bit for bit as `Recommender.scores` does.

        Raises:
            LsatError: when a strategy is not served.
        """
        async with self.bulk_lock:
            served = self.served
            models = {n: served.select(n) for n in (served.names if strategies is None else strategies)}
            passes = [self.recommender.passes(m) for m in models.values()]
            encoded = await asyncio.to_thread(self.bulk_encoder.scoring, samples)
            steps = self.recommender.steps(list(models.values()), passes, encoded)
            while True:
                try:
                    next(steps)
                except StopIteration as done:
                    found: list[np.ndarray] = done.value
                    break
                await asyncio.sleep(0)
        order = _positions(encoded.row, samples.row)
        return Bulk(served.version, {n: s[order] for n, s in zip(models, found, strict=True)}, models)

    # Control, by the handle alone

    async def prepare(self, models: list[dict[str, Any]], version: int) -> Report:
        """Load and verify the next models beside the current ones; a refusal changes nothing."""
        async with self.control_lock:
            try:
                following = Served.from_json(models, version)
                await asyncio.to_thread(self.recommender.prepare, (*self.served.models, *following.models))
            except LsatError as error:
                return self._report(str(error))
            self.prepared = following
            return self._report()

    async def commit(self, version: int) -> Report:
        """Serve what was prepared under this version.

        A replica that started after the prepare has nothing prepared: it reads `current.json`.
        """
        async with self.control_lock:
            try:
                await self._ensure_prepared(version)
            except LsatError as error:
                return self._report(str(error))
            if self.prepared is not None:
                self.served, self.prepared = self.prepared, None
                self.recommender.prepare(self.served.models)  # drops the old ones; reads nothing
            return self._report()

    async def _ensure_prepared(self, version: int) -> None:
        """Leave `prepared` holding this version, or None when it is served already."""
        if self.prepared is not None and self.prepared.version == version:
            return
        current = read_current(Path(self.setup.run_dir))
        if current is None or current.version != version:
            raise LsatError(f"version {version} was neither prepared here nor published; publish it again")
        if current == self.served:
            self.prepared = None
            return
        await asyncio.to_thread(self.recommender.prepare, (*self.served.models, *current.models))
        self.prepared = current

    async def state(self) -> Report:
        """Say what is served and what is prepared."""
        return self._report()

    def _report(self, error: str | None = None) -> Report:
        replica = serve.get_replica_context().replica_id.unique_id
        prepared = self.prepared.digest if self.prepared else None
        return Report(replica, os.getpid(), self.served.digest, prepared, error)


def _positions(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where each wanted row stands in `found`: a layout may have reordered them."""
    order = np.argsort(found, kind="stable")
    return order[np.searchsorted(found, wanted, sorter=order)]
