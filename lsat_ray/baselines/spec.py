"""What a classical model is a pure function of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args

from lsat_ray.config import ClassicalRecipe
from lsat_ray.data.periods import Slice

ModelName = Literal["mf", "deepmusic", "gru4rec", "caser", "sasrec", "din", "logistic"]
SIDES: dict[str, Literal["online", "period"]] = {"+side": "online", "+side@period": "period"}
"""What follows a model's name where side features go with it; a bare name follows the recipe: none by default."""
LEARNERS = tuple(model + suffix for model in get_args(ModelName) for suffix in ("", *SIDES))
"""What stands before the rule in a row's name (`mf+side/full-retraining`)."""


def named(learner: str, recipe: ClassicalRecipe) -> tuple[ModelName, ClassicalRecipe]:
    """Return the model of one of `LEARNERS`, and the recipe with the side features that the name asks for."""
    model, plus, rest = learner.partition("+")
    mine = recipe.model_copy(update={"side": SIDES[plus + rest]}) if plus else recipe
    return cast(ModelName, model), mine


@dataclass(frozen=True)
class ClassicalSpec:
    """Everything that decides a classical model's weights; its SHA-256 is the model's name in the store."""

    model: ModelName
    recipe: ClassicalRecipe
    data: str
    """Fingerprint of log, windows and cut (`Periods.fingerprint`)."""
    train: tuple[Slice, ...]
    """Slices whose rows are trained on."""
    validation: tuple[Slice, ...]
    """Slices whose AUC selects the epoch that is kept."""
    seed: int
    warmup: bool = False
    """Train on the newest samples before D_1 as well (the nano backbone is built from them too)."""
    init: ClassicalSpec | None = None
    """Model to continue from (None: fresh weights from the seed)."""
    keep_old: bool = False
    """With `init`: return the initial weights when no epoch beats them on the validation rows."""
    past: int | None = None
    """Most events in a history, of the user's whole past (None: the samples' own)."""
    rows: int | None = None
    """Train on that many rows, drawn uniformly (None: on all)."""

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON, 64 hex digits."""
        return hashlib.sha256(json.dumps(self.manifest(), sort_keys=True).encode()).hexdigest()

    def manifest(self) -> dict[str, Any]:
        """Return the spec as JSON-ready values; the initial model appears by digest."""
        longer = {name: value for name in ("past", "rows") if (value := getattr(self, name)) is not None}
        return {
            "kind": "classical",
            "model": self.model,
            "recipe": self.recipe.model_dump(mode="json"),
            "data": self.data,
            "train": [list(s) for s in self.train],
            "validation": [list(s) for s in self.validation],
            "seed": self.seed,
            "warmup": self.warmup,
            "init": self.init.digest if self.init else None,
            "keep_old": self.keep_old,
            **longer,  # named only where set: models from before keep their names
        }

    @staticmethod
    def from_manifest(tree: dict[str, Any]) -> ClassicalSpec:
        """Read what `manifest` wrote, to score with: the initial model, which only fitting needs, is left out."""
        kept: dict[str, Any] = {k: tree[k] for k in ("model", "data", "seed", "warmup", "keep_old")}
        kept |= {k: tree[k] for k in ("past", "rows") if k in tree}
        kept |= {k: tuple(Slice(*s) for s in tree[k]) for k in ("train", "validation")}
        return ClassicalSpec(recipe=ClassicalRecipe(**tree["recipe"]), **kept)

    def parents(self) -> tuple[ClassicalSpec, ...]:
        """Return the models that must exist before this one can be fitted."""
        return (self.init,) if self.init else ()

    @property
    def last_period(self) -> int:
        """Newest period whose rows this model has seen, in training or in selection."""
        return max(s.period for s in (*self.train, *self.validation))
