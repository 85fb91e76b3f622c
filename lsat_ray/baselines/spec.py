"""What a classical model is a pure function of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from lsat_ray.config import Node
from lsat_ray.data.periods import Slice

ModelName = Literal["mf", "deepmusic", "gru4rec", "caser", "sasrec", "logistic"]


class ClassicalRecipe(Node):
    """Hyper-parameters of a classical model; the first block is the paper's (methods.md 4), the second is ours."""

    width: int = Field(64, ge=1)
    """Embedding and hidden width."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate of Adam, whose state starts anew in every period."""
    batch_size: int = Field(256, ge=1)
    """Samples a step."""
    weight_decay: float = Field(1e-5, ge=0)
    """L2 added to the gradient; in embedding tables only to rows that the batch touches (see `training.py`)."""
    loss: Literal["mse", "bce"] = "mse"
    """Squared error of the raw score, or logistic loss."""
    epochs: int = Field(4, ge=1)
    """Most passes over the rows."""
    patience: int = Field(1, ge=1)
    """Epochs without a better validation AUC after which fitting stops."""

    side: Literal["none", "history", "stream"] = "stream"
    """Side features: none; of the sample's own history; those and causal counts of the stream (`features.py`)."""
    table_lr: float = Field(0.3, gt=0)
    """Learning rate of the embedding tables, as a share of `lr`: a row that is touched once moves far under Adam."""
    warmup_rows: int = Field(20_000, ge=0)
    """With the spec's `warmup`: the newest that many samples before D_1 are trained on (more gave nothing)."""
    biases: bool = True
    """Learn a bias for every item (and user, in MF)."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout inside the network."""
    init_scale: float = Field(0.01, gt=0)
    """Standard deviation of fresh embedding rows; what a cold id is scored with."""
    history_vector: bool = True
    """MF: add the mean of the history's signed item vectors to the user's vector, so that new users have one."""
    penalty: float = Field(1e-4, gt=0)
    """Logistic regression: L2 penalty, per sample."""
    online_lr: float = Field(0.01, gt=0)
    """Logistic regression, fine-tuning: constant learning rate of stochastic gradient descent."""


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

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON, 64 hex digits."""
        return hashlib.sha256(json.dumps(self.manifest(), sort_keys=True).encode()).hexdigest()

    def manifest(self) -> dict[str, Any]:
        """Return the spec as JSON-ready values; the initial model appears by digest."""
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
        }

    @staticmethod
    def from_manifest(tree: dict[str, Any]) -> ClassicalSpec:
        """Read what `manifest` wrote, to score with: the initial model, which only fitting needs, is left out."""
        kept: dict[str, Any] = {k: tree[k] for k in ("model", "data", "seed", "warmup", "keep_old")}
        kept |= {k: tuple(Slice(*s) for s in tree[k]) for k in ("train", "validation")}
        return ClassicalSpec(recipe=ClassicalRecipe(**tree["recipe"]), **kept)

    def parents(self) -> tuple[ClassicalSpec, ...]:
        """Return the models that must exist before this one can be fitted."""
        return (self.init,) if self.init else ()

    @property
    def last_period(self) -> int:
        """Newest period whose rows this model has seen, in training or in selection."""
        return max(s.period for s in (*self.train, *self.validation))
