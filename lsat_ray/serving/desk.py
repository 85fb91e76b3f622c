"""What stands between requests and the backbone: batches by tokens, deadlines, and changes of models in two phases.

All work on the backbone happens on one event loop, one forward pass at a time. A batch fixes its models when it begins
and pauses after each pass, so that a swap, a health check, or a short request beside a long one waits for one pass at
most. Short requests, long ones and bulk take turns. Nothing here knows of HTTP or Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsat_ray.data.windows import Samples
from lsat_ray.errors import LsatError
from lsat_ray.prompts.encode import Encoder
from lsat_ray.report.reader import RunReader
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.prefix import Ask, Prepared, Refused, assemble, prepare, twin
from lsat_ray.scoring.recommender import Recommender
from lsat_ray.scoring.served import FROZEN, Served, read_current
from lsat_ray.serving.metrics import Metrics
from lsat_ray.serving.promotion import prequential

LONG = 16
"""Candidates from which on an ask is tokenised beside the event loop."""


class Overloaded(LsatError):
    """More waits than can be answered before the deadline."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too much is waiting; try again in {wait_s:.0f} s")
        self.wait_s = wait_s


@dataclass(frozen=True)
class Result:
    """The scores of one ask, and which model gave them."""

    name: str
    model: Model
    version: int
    scores: np.ndarray
    """float64 [N] of P(like)."""
    used: np.ndarray
    """int64 [N], events of the history that each candidate was scored with."""


@dataclass(frozen=True)
class Bulk:
    """Scores of samples, all by one version."""

    version: int
    scores: dict[str, np.ndarray]
    """float64 [N] of P(like) by name of the model, in the order of the samples; NaN outside the share."""
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


@dataclass
class _Job:
    """Asks that wait together and are answered by one version."""

    asks: list[Ask]
    prepared: list[Prepared]
    began: float
    deadline: float
    future: asyncio.Future[list[Result]]
    waited: float = 0.0
    """Seconds until its turn."""

    @property
    def tokens(self) -> int:
        return sum(p.tokens for p in self.prepared)


class _Lane:
    """A queue of jobs, worked off batch by batch while there are any."""

    def __init__(self, work: Callable[[list[_Job]], Awaitable[None]], budget: int) -> None:
        self._work, self._budget = work, budget
        self._jobs: deque[_Job] = deque()
        self._task: asyncio.Task[None] | None = None
        self._rate: float | None = None  # tokens per second, smoothed
        self.tokens = 0

    @property
    def idle(self) -> bool:
        return self._task is None or self._task.done()

    @property
    def wait_s(self) -> float:
        """Seconds that a new job will wait, estimated."""
        return self.tokens / self._rate if self._rate else 0.0

    def put(self, job: _Job) -> None:
        self._jobs.append(job)
        self.tokens += job.tokens
        if self.idle:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(0)  # answers go out, and what arrived at the same time comes along
            if not self._jobs:
                return
            began = time.monotonic()
            batch = self._take(began)
            tokens = sum(job.tokens for job in batch)
            if batch:
                await self._work(batch)
                self.tokens -= tokens
                rate = tokens / max(time.monotonic() - began, 1e-6)
                self._rate = rate if self._rate is None else 0.8 * self._rate + 0.2 * rate

    def _take(self, now: float) -> list[_Job]:
        batch: list[_Job] = []
        taken = 0
        while self._jobs and (not batch or taken + self._jobs[0].tokens <= self._budget):
            job = self._jobs.popleft()
            if job.future.done() or now > job.deadline:  # the client has gone, or has waited too long
                self.tokens -= job.tokens
                if not job.future.done():
                    job.future.set_exception(Overloaded(max(1.0, self.wait_s)))
                continue
            job.waited = now - job.began
            batch.append(job)
            taken += job.tokens
        return batch


class Desk:
    """Answer asks, score samples in bulk, and change models without mixing two versions in an answer."""

    def __init__(
        self,
        recommender: Recommender,
        encoder: Encoder,
        run_dir: Path,
        default: str | None = None,
        deadline_s: float = 2.0,
        metrics: Metrics | None = None,
    ) -> None:
        """Serve what the run folder says, or the frozen backbone.

        Args:
            recommender: scores.
            encoder: tokenizer, prompt and the catalogue's titles (for bulk).
            run_dir: where `current.json` lies.
            default: name of the model that answers where none is named (None: the first).
            deadline_s: longest that a request waits for its turn.
            metrics: where to count.

        Raises:
            LsatError: when what is current cannot be loaded.
        """
        self.recommender = recommender
        self.run_dir = run_dir
        self.default = default
        self.deadline_s = deadline_s
        self.metrics = metrics or Metrics("local")
        self._encoder, self._beside, self._catalogue = encoder, twin(encoder), twin(encoder)
        self._tokenising, self._bulk, self._control = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        budget = recommender.batch_tokens
        self._short, self._long = _Lane(self._answer, budget), _Lane(self._answer, budget)
        self._shadow: asyncio.Task[None] | None = None
        self.served = read_current(run_dir) or Served(0, (FROZEN,))
        self.prepared: Served | None = None
        recommender.prepare(self.served.all_models)
        self.metrics.serving(self.served)

    async def ask(self, asks: list[Ask]) -> list[Result]:
        """Answer asks by one version, together with those of others.

        Raises:
            Refused: when one of them cannot be answered.
            Overloaded: when they would wait longer than the deadline.
        """
        began = time.monotonic()
        count = sum(len(ask.candidates) for ask in asks)
        lane = self._short if count < LONG else self._long
        if lane.wait_s > self.deadline_s:
            raise Overloaded(max(1.0, lane.wait_s - self.deadline_s))
        for i, ask in enumerate(asks):
            self._choose(self.served, ask, i)
        if count < LONG:
            prepared = _prepare(self._encoder, asks)
        else:
            async with self._tokenising:
                prepared = await asyncio.to_thread(_prepare, self._beside, asks)
        job = _Job(asks, prepared, began, began + self.deadline_s, asyncio.get_running_loop().create_future())
        lane.put(job)
        self.metrics.waiting.set(self._short.tokens + self._long.tokens)
        return await job.future

    def _choose(self, served: Served, ask: Ask, number: int) -> tuple[str, Model]:
        """Return the name and the model that answer an ask."""
        if ask.model is None and ask.user is not None and served.candidate and served.on_trial(ask.user):
            return served.candidate.strategy, served.candidate
        name = ask.model or self._default(served)
        if name not in served.names:
            raise Refused("model", f"{name!r} is not served", f"served: {', '.join(served.names)}", number)
        return name, served.select(name)

    @property
    def default_name(self) -> str:
        """Name of the model that answers where none is named."""
        return self._default(self.served)

    def _default(self, served: Served) -> str:
        return self.default if self.default is not None and self.default in served.names else served.names[0]

    async def _answer(self, jobs: list[_Job]) -> None:
        """Score a batch, those of a model together; every job gets its results or the reason why there are none."""
        for job in jobs:
            self.metrics.waited.observe(job.waited)
        try:
            await self._score(self.served, jobs)
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(error)

    async def _score(self, served: Served, jobs: list[_Job]) -> None:
        chosen: dict[str, tuple[str, Model]] = {}
        members: dict[str, list[tuple[_Job, int]]] = {}
        for job in jobs:
            try:
                found = [self._choose(served, ask, i) for i, ask in enumerate(job.asks)]
            except Refused as refusal:  # a swap took its model away
                if not job.future.done():
                    job.future.set_exception(refusal)
                continue
            for i, (name, model) in enumerate(found):
                chosen[model.digest] = (name, model)
                members.setdefault(model.digest, []).append((job, i))
        passes = {digest: self.recommender.passes(model) for digest, (_, model) in chosen.items()}
        results: dict[tuple[int, int], Result] = {}
        for digest, several in members.items():
            name, model = chosen[digest]
            prepared = [job.prepared[i] for job, i in several]
            work = assemble(self._encoder, prepared, self.recommender.batch_tokens)
            self.metrics.tokens.observe(sum(p.tokens for p in prepared))
            rows, (scores,) = await _drive(self.recommender.steps([model], [passes[digest]], work, live=True))
            ends = np.cumsum([len(p.used) for p in prepared])[:-1]
            for (job, i), part in zip(several, np.split(scores[np.argsort(rows)], ends), strict=True):
                results[id(job), i] = Result(name, model, served.version, part, job.prepared[i].used)
            self.metrics.targets.inc(len(rows))
            if served.candidate and not served.share and model != served.candidate:
                self._score_in_shadow(served.candidate, prepared, scores[np.argsort(rows)])
        for job in jobs:
            if not job.future.done():
                job.future.set_result([results[id(job), i] for i in range(len(job.asks))])

    def _score_in_shadow(self, candidate: Model, prepared: list[Prepared], answered: np.ndarray) -> None:
        """Score what was answered with the candidate too, when nobody waits; skip it otherwise."""
        if self._shadow is not None and not self._shadow.done():
            return

        async def later() -> None:
            await asyncio.sleep(0)
            work = assemble(self._encoder, prepared, self.recommender.batch_tokens)
            try:
                passes = self.recommender.passes(candidate)
            except LsatError:  # it was withdrawn meanwhile
                return
            rows, (scores,) = await _drive(self.recommender.steps([candidate], [passes], work, live=True))
            for distance in np.abs(scores[np.argsort(rows)] - answered).tolist():
                self.metrics.difference.observe(distance)
            self.metrics.shadowed.inc(len(rows))

        self._shadow = asyncio.create_task(later())

    async def metrics_text(self) -> str:
        """Return this replica's counters, and how the models did on the periods that the run has tested so far."""
        served = self.served
        roles = {"champion": served.select(self._default(served)).strategy}
        if served.candidate:
            roles["candidate"] = served.candidate.strategy
        means, periods = await asyncio.to_thread(self._losses, list(roles.values()))
        self.metrics.losses({role: (name, means[name]) for role, name in roles.items() if name in means}, periods)
        self.metrics.prefixes(self.recommender.states)
        return self.metrics.text()

    def _losses(self, names: list[str]) -> tuple[dict[str, float], int]:
        try:
            return prequential(RunReader(self.run_dir).ledger, names)
        except LsatError:  # a broken ledger must not blind the monitoring
            return {}, 0

    # Bulk

    async def bulk(self, samples: Samples, names: Sequence[str] | None = None, share: tuple[int, int] = (0, 1)) -> Bulk:
        """Score samples with some served models (all when None), bit for bit as `Recommender.scores` does.

        Args:
            samples: of the catalogue.
            names: of the models.
            share: (k, n) does every n-th pass from the k-th on, so that n replicas do the whole.

        Raises:
            LsatError: when a model is not served.
        """
        async with self._bulk:
            served = self.served
            models = {n: served.select(n) for n in (served.names if names is None else names)}
            passes = [self.recommender.passes(m) for m in models.values()]
            encoded = await asyncio.to_thread(self._catalogue.scoring, samples)
            work = self.recommender.work(encoded, share)
            rows, scores = await _drive(self.recommender.steps(list(models.values()), passes, work))
        place = _positions(samples.row, rows)
        found = {name: np.full(len(samples), np.nan) for name in models}
        for name, values in zip(models, scores, strict=True):
            found[name][place] = values
        return Bulk(served.version, found, models)

    # Change

    async def prepare(self, following: Served) -> None:
        """Load and verify the next models beside the current ones.

        Raises:
            LsatError: why it was refused; nothing has changed then.
        """
        async with self._control:
            with self.metrics.swaps.time():
                await asyncio.to_thread(self.recommender.prepare, (*self.served.all_models, *following.all_models))
            self.prepared = following

    async def commit(self, digest: str) -> None:
        """Serve what was prepared under this digest; who has not prepared it reads `current.json`.

        Raises:
            LsatError: when it was neither prepared nor published.
        """
        async with self._control:
            if self.served.digest == digest:
                self.prepared = None
                return
            if self.prepared is None or self.prepared.digest != digest:
                current = read_current(self.run_dir)
                if current is None or current.digest != digest:
                    raise LsatError(f"{digest[:12]} was neither prepared here nor published; publish it again")
                await asyncio.to_thread(self.recommender.prepare, (*self.served.all_models, *current.all_models))
                self.prepared = current
            self.served, self.prepared = self.prepared, None
            self.recommender.prepare(self.served.all_models)  # drops the old ones; reads nothing
            self.metrics.serving(self.served)


def _prepare(encoder: Encoder, asks: Sequence[Ask]) -> list[Prepared]:
    found = []
    for number, ask in enumerate(asks):
        try:
            found.append(prepare(encoder, ask))
        except Refused as refusal:
            raise Refused(refusal.field, refusal.what, refusal.remedy, number) from refusal
    return found


async def _drive(steps: Generator[None, None, Any]) -> Any:
    """Run a generator, letting others run in its pauses, and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value
        await asyncio.sleep(0)


def _positions(where: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where each wanted row stands in `where`: a layout may have reordered them."""
    order = np.argsort(where, kind="stable")
    return order[np.searchsorted(where, wanted, sorter=order)]
