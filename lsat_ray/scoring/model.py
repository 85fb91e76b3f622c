"""What answers for a strategy, and how margins become its score; plain NumPy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lsat_ray.scoring.gate import gated

OUTPUT_MERGES = ("output-ensemble", "gated-ensemble")
"""Merges of scores: one forward pass per member, where a merge of parameters takes one for all."""
FROZEN, CLASSICAL, IN_CONTEXT, RECLORA = "frozen", "classical", "in-context", "reclora"
"""What merges nothing: the backbone alone; a recommender without a language model; the backbone with solved samples in
its prompt; an adapter that needs a retriever or a conventional recommender beside it."""


@dataclass(frozen=True)
class Model:
    """What a strategy serves after a period: named adapters and how they become one score.

    Attributes say all that a score depends on, so `digest` identifies it in every answer.
    """

    strategy: str
    period: int
    """Period after which it was made; it is tested on the next."""
    merge: str
    """`single`, one of `OUTPUT_MERGES`, a key of `PARAMETER_MERGES`, or one of the three that merge nothing."""
    adapters: tuple[str, ...] = ()
    """Digests in the store, in the order of the weights."""
    weights: tuple[float, ...] = ()
    space: str = "probability"
    """What an output ensemble averages."""
    seed: int = 0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the fields, 64 hex digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def served(self) -> bool:
        """Whether the endpoint can answer with it; the others are scored by the workers."""
        return self.merge not in (CLASSICAL, IN_CONTEXT, RECLORA)

    @property
    def calibrated(self) -> bool:
        """Whether its score is a probability."""
        return self.merge != CLASSICAL

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @staticmethod
    def from_json(tree: dict[str, Any]) -> Model:
        """Read what `to_json` wrote."""
        return Model(**{**tree, "adapters": tuple(tree["adapters"]), "weights": tuple(tree["weights"])})


def probability(margin: np.ndarray) -> np.ndarray:
    """Return P(Yes) among {Yes, No}: the sigmoid of the margin, float64."""
    return 1.0 / (1.0 + np.exp(-np.asarray(margin, dtype=np.float64)))


def ensemble(margin: Sequence[np.ndarray], weight: Sequence[float], space: str = "probability") -> np.ndarray:
    """Return the scores of an output ensemble (LSAT equation 3), in (0, 1).

    Args:
        margin: one [N] array a member, aligned row by row.
        weight: the members' weights, summing to 1.
        space: average P(Yes) (`probability`), the margins (`logit`), or the softmax over the two probabilities, as the
            LSAT code does (`double-softmax`; P(Yes) of the average, so that one member alone keeps its own).
    """
    members = [np.asarray(m, dtype=np.float64) for m in margin]
    if space == "logit":
        return probability(np.sum([w * m for w, m in zip(weight, members, strict=True)], axis=0))
    if space == "double-softmax":
        twice = np.sum([w * probability(2 * probability(m) - 1) for w, m in zip(weight, members, strict=True)], axis=0)
        return np.asarray((1.0 + np.log(twice) - np.log1p(-twice)) / 2.0)
    return np.asarray(np.sum([w * probability(m) for w, m in zip(weight, members, strict=True)], axis=0))


def combine(model: Model, margin: Sequence[np.ndarray]) -> np.ndarray:
    """Return the score float64 [N], P(like) unless the model is classical, from the margins that it combines."""
    if model.merge == "output-ensemble":
        return ensemble(margin, model.weights, model.space)
    if model.merge == "gated-ensemble":
        return gated(margin, model.weights)
    if model.merge == CLASSICAL:
        return np.asarray(margin[0], dtype=np.float64)
    return probability(margin[0])


def passes(model: Model) -> list[Model]:
    """Return the forward passes that a model combines, each as a model that names no strategy, period or seed.

    Equal passes of different models are equal here, so that each needs to be made once.
    """
    if model.merge in OUTPUT_MERGES:
        return [Model("pass", 0, "single", (digest,), (1.0,)) for digest in model.adapters]
    return [Model("pass", 0, model.merge, model.adapters, model.weights)]
