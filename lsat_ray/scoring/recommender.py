"""What answers: a backbone, the adapters it may wear, and the models that combine them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any

import numpy as np

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.adapters.merge import PARAMETER_MERGES
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded, token_budget_batches
from lsat_ray.prompts.encode import Encoder
from lsat_ray.scoring.model import OUTPUT_MERGES, Model, combine
from lsat_ray.scoring.prefix import Ask, Work, assemble, prepare
from lsat_ray.scoring.score import part, score
from lsat_ray.scoring.states import StateCache

Pass = tuple[Any, Adapter | None]
"""A forward pass over the samples: what identifies it, and the adapter that is worn (None: the frozen backbone)."""

TOGETHER = 1024
"""Most tokens, copies included, of a pass that several adapters share. It saves what a pass costs whatever its length;
a longer one is on a CPU as fast, or faster, with a pass for each adapter (`benchmarks/ensemble_pass.py`)."""


class Recommender:
    """Score encoded samples with any models; each distinct adapter takes part once."""

    def __init__(
        self,
        backbone: AdaptedBackbone,
        store: AdapterStore,
        batch_tokens: int = 16384,
        fingerprint: str | None = None,
        state_bytes: int = 0,
    ) -> None:
        """Start without adapters.

        Args:
            backbone: what wears them.
            store: where they lie.
            batch_tokens: most padded tokens in a pass.
            fingerprint: of the backbone; adapters that were trained on another one are refused (None: not compared).
            state_bytes: most bytes of prefix states that are kept between live requests.
        """
        self.backbone = backbone
        self.store = store
        self.batch_tokens = batch_tokens
        self.fingerprint = fingerprint
        self.states = StateCache(state_bytes)
        self._adapters: dict[str, Adapter] = {}
        self._merged: dict[Any, Adapter] = {}
        self._shapes = {name: tuple(p.shape) for name, p in backbone.slot_parameters().items()}

    def prepare(self, models: Iterable[Model]) -> None:
        """Load, verify and merge every adapter of the models, and drop those of no model.

        The model itself is not touched, so another thread may score meanwhile. To hold the next models beside the
        current ones, name both; to drop the current ones later, name the next alone, which then reads nothing.

        Raises:
            LsatError: when one is missing, damaged or does not fit; what was prepared before stays.
        """
        models = list(models)
        wanted = sorted({digest for model in models for digest in model.adapters})
        adapters = {d: self._adapters.get(d) or self._fitting(d) for d in wanted}
        merged = {}
        for model in models:
            if model.merge not in ("frozen", "single", *OUTPUT_MERGES):
                key = _merge_key(model)
                merged[key] = self._merged.get(key) or _merge(model, adapters)
        self._adapters, self._merged = adapters, merged
        self.states.serve(key for model in models for key, _ in self.passes(model))

    def passes(self, model: Model) -> list[Pass]:
        """Return the passes whose margins a model combines: one an ensemble member, else one.

        Raises:
            LsatError: when the model was not prepared.
        """
        if model.merge == "frozen":
            return [("frozen", None)]
        if model.merge in ("single", *OUTPUT_MERGES):
            return [(digest, self._held(digest)) for digest in model.adapters]
        key = _merge_key(model)
        if key not in self._merged:
            for digest in model.adapters:
                self._held(digest)
            self._merged[key] = _merge(model, self._adapters)
        return [(key, self._merged[key])]

    def margins(self, model: Model, encoded: Encoded, known: dict[Any, np.ndarray] | None = None) -> list[np.ndarray]:
        """Return the margins float32 [N] that a model combines.

        Args:
            model: prepared before.
            encoded: the samples.
            known: margins by pass, shared between the models of one call.
        """
        known = {} if known is None else known
        passes = self.passes(model)
        for key, adapter in passes:
            if key not in known:
                known[key] = score(self.backbone, adapter, encoded, self.batch_tokens)
        return [known[key] for key, _ in passes]

    def scores(self, models: Sequence[Model], encoded: Encoded) -> list[np.ndarray]:
        """Return one float64 [N] of P(like) a model, in the order of `encoded.row`."""
        known: dict[Any, np.ndarray] = {}
        return [combine(model, self.margins(model, encoded, known)) for model in models]

    def work(self, encoded: Encoded, share: tuple[int, int] = (0, 1)) -> list[Work]:
        """Return the passes that score an encoding, or replica k's of n with `share` = (k, n): every n-th pass."""
        groups = token_budget_batches(encoded, self.batch_tokens)
        return [(encoded, group) for group in groups[share[0] :: share[1]]]

    def steps(
        self, models: Sequence[Model], passes: Sequence[list[Pass]], work: Sequence[Work], live: bool = False
    ) -> Generator[None, None, tuple[np.ndarray, list[np.ndarray]]]:
        """Score as `scores` does, bit for bit, with a pause after each pass in which others may use the backbone.

        Args:
            models: what to score with.
            passes: their `passes`, taken before: a `prepare` in a pause changes nothing here.
            work: what to score.
            live: short work goes through once for all adapters, and prefix states are kept for the next request;
                margins are the same to 1e-6, no more bit for bit.

        Returns:
            (row int64 [M], one float64 [M] of P(like) per model).
        """
        adapters = dict(one for several in passes for one in several)
        found, values = [np.empty(0, np.int64)], [np.empty((len(adapters), 0), np.float32)]
        for encoded, group in work:
            each = [[key] for key in adapters]
            if live and self._shares(list(adapters), encoded, group):
                each = [list(adapters)]
            margin = []
            for worn in each:
                states = self.states.find(worn, encoded.prefix) if live else None
                known = states.length if states else 0
                own = [adapters[key] for key in worn]
                index, value = part(self.backbone, own, encoded, self.batch_tokens, group, states)
                if states:
                    self.states.keep(worn, encoded.prefix, known, states)
                margin.append(value)
                yield
            found.append(encoded.row[index])
            values.append(np.concatenate(margin))
        by_key = dict(zip(adapters, np.concatenate(values, axis=1), strict=True))
        scores = [combine(m, [by_key[key] for key, _ in several]) for m, several in zip(models, passes, strict=True)]
        return np.concatenate(found), scores

    def _shares(self, worn: list[Any], encoded: Encoded, group: np.ndarray) -> bool:
        """Return whether several adapters go through these sequences in one pass."""
        if len(worn) == 1 or not self.backbone.wears_several:
            return False
        known = self.states.find(worn, encoded.prefix).length
        tokens = len(encoded.prefix) - known + len(group) * int(encoded.lengths[group].max())
        return len(worn) * tokens <= TOGETHER

    def rank(self, model: Model, encoder: Encoder, ask: Ask) -> np.ndarray:
        """Return P(like) float64 [N] of each candidate; the history is computed once for all.

        Args:
            model: prepared before.
            encoder: tokenizer and prompt.
            ask: history and candidates.

        Raises:
            Refused: when a title does not fit.
        """
        work = assemble(encoder, [prepare(encoder, ask)], self.batch_tokens)
        rows, scores = finish(self.steps([model], [self.passes(model)], work, live=True))
        return scores[0][np.argsort(rows)]

    def _held(self, digest: str) -> Adapter:
        if digest not in self._adapters:
            raise LsatError(f"adapter {digest[:12]} was not prepared; call prepare with its model first")
        return self._adapters[digest]

    def _fitting(self, digest: str) -> Adapter:
        """Load an adapter and compare its origin, modules and shapes with the backbone's."""
        adapter = self.store.load(digest)
        origin = self.store.manifest(digest)["spec"].get("backbone")
        if self.fingerprint is not None and origin is not None and origin != self.fingerprint:
            raise LsatError(
                f"adapter {digest[:12]}: trained on backbone {origin[:12]}, this is {self.fingerprint[:12]}; "
                "give the folder of the run's own backbone"
            )
        for name in sorted(self._shapes.keys() | adapter.state.keys()):
            expected, found = self._shapes.get(name), adapter.state.get(name)
            if expected is None or found is None:
                raise LsatError(f"adapter {digest[:12]}: {name} is on one side only; check lora.targets")
            shape = (adapter.rank, expected[1]) if ".lora_A." in name else (expected[0], adapter.rank)
            if tuple(found.shape) != shape:
                raise LsatError(
                    f"adapter {digest[:12]}: {name} is {tuple(found.shape)}, this backbone needs {shape}; "
                    "it was trained for another backbone"
                )
        return adapter


def _merge_key(model: Model) -> tuple[str, tuple[str, ...], tuple[float, ...]]:
    return (model.merge, model.adapters, model.weights)


def _merge(model: Model, adapters: dict[str, Adapter]) -> Adapter:
    if model.merge not in PARAMETER_MERGES:
        raise LsatError(f"merge {model.merge!r} is unknown; known are {', '.join(sorted(PARAMETER_MERGES))}")
    return PARAMETER_MERGES[model.merge]([adapters[d] for d in model.adapters], model.weights)


def finish(steps: Generator[None, None, Any]) -> Any:
    """Run a generator without a pause and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value
