"""What answers: a backbone, the adapters it may wear, and the models that combine them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.adapters.merge import PARAMETER_MERGES
from lsat_ray.adapters.score import ensemble, probability, score
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded


@dataclass(frozen=True)
class Model:
    """What a strategy serves after a period: named adapters and how they become one score.

    Attributes say all that a score depends on, so `digest` identifies it in every answer.
    """

    strategy: str
    period: int
    """Period after which it was made; it is tested on the next."""
    merge: str
    """`frozen` (no adapter), `single`, `output-ensemble`, or a key of `PARAMETER_MERGES`."""
    adapters: tuple[str, ...] = ()
    """Digests in the store, in the order of the weights."""
    weights: tuple[float, ...] = ()
    space: str = "probability"
    """What an output ensemble averages."""
    seed: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of the fields, 64 hex digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @staticmethod
    def from_json(tree: dict[str, Any]) -> Model:
        """Read what `to_json` wrote."""
        return Model(**{**tree, "adapters": tuple(tree["adapters"]), "weights": tuple(tree["weights"])})


class Recommender:
    """Score encoded samples with any models; one forward pass a distinct adapter."""

    def __init__(self, backbone: AdaptedBackbone, store: AdapterStore, batch_tokens: int = 16384) -> None:
        self.backbone = backbone
        self.store = store
        self.batch_tokens = batch_tokens
        self._adapters: dict[str, Adapter] = {}
        self._merged: dict[Any, Adapter] = {}

    def prepare(self, models: Iterable[Model]) -> None:
        """Load and verify every adapter of the models, and drop those of no model.

        Raises:
            LsatError: when one is missing, damaged or does not fit; what was prepared before stays.
        """
        wanted = {digest for model in models for digest in model.adapters}
        loaded = {d: self._adapters.get(d) or self.store.load(d) for d in sorted(wanted)}
        self._adapters = loaded
        self._merged = {}

    def passes(self, model: Model) -> list[tuple[Any, Adapter | None]]:
        """Return the forward passes of a model as (key, adapter): one an ensemble member, else one.

        Equal keys are equal passes, whichever model asks for them. None is the frozen backbone.
        """
        if model.merge == "frozen":
            return [("frozen", None)]
        held = [self._held(d) for d in model.adapters]
        if model.merge in ("single", "output-ensemble"):
            return list(zip(model.adapters, held, strict=True))
        if model.merge not in PARAMETER_MERGES:
            raise LsatError(f"merge {model.merge!r} is unknown; known are {', '.join(sorted(PARAMETER_MERGES))}")
        key = (model.merge, model.adapters, model.weights)
        if key not in self._merged:
            self._merged[key] = PARAMETER_MERGES[model.merge](held, model.weights)
        return [(key, self._merged[key])]

    def margins(self, model: Model, encoded: Encoded, known: dict[Any, np.ndarray] | None = None) -> list[np.ndarray]:
        """Return the margins that a model combines: one an ensemble member, else one.

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

    def _held(self, digest: str) -> Adapter:
        if digest not in self._adapters:
            raise LsatError(f"adapter {digest[:12]} was not prepared; call prepare with its model first")
        return self._adapters[digest]


def combine(model: Model, margin: Sequence[np.ndarray]) -> np.ndarray:
    """Return P(like) float64 [N] from the margins that the model combines."""
    if model.merge == "output-ensemble":
        return ensemble(margin, model.weights, model.space)
    return probability(margin[0])
