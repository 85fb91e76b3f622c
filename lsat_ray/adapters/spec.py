"""What an adapter is a pure function of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from lsat_ray.config import GateConfig, LoraSettings, PromptConfig, Recipe, RetrieverConfig
from lsat_ray.data.periods import Slice


@dataclass(frozen=True)
class Regulariser:
    """A penalty that is added to the loss; its reference is the spec's initial adapter."""

    kind: Literal["softmax-kl", "l2", "orthogonal", "rank-kl", "output-kl"]
    """Proximity to the initial adapter (PESO, methods.md 5); `output-kl` needs activations, in the generative task."""
    weight: float
    """lambda."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the adapted modules: `sum` as in PESO's equation, `mean` as in its code."""


@dataclass(frozen=True)
class Frozen:
    """Earlier adapters that are added, frozen, to the one that is trained (cumulative LoRA family)."""

    adapters: tuple[AdapterSpec, ...]
    """None in the first link of an InfLoRA chain."""
    kind: Literal["sum", "sd", "orthogonal", "inf"]
    """`sum`: normalised and added (SumLoRA); `sd`: with learned magnitudes (SD-LoRA); `orthogonal`: added with the
    O-LoRA penalty; `inf`: added, A fixed orthogonal to the earlier inputs' main directions (InfLoRA)."""
    weight: float = 1.0
    """Weight of the O-LoRA penalty."""


class Recommender(Protocol):
    """The spec of a conventional recommender (`baselines.spec`, a later room)."""

    @property
    def digest(self) -> str:
        """Its name in the store."""

    @property
    def last_period(self) -> int:
        """Newest period that it has seen."""


@dataclass(frozen=True)
class Reclora:
    """What makes an adapter one of RecLoRA, or of its ablations (methods.md 6); each part may be missing."""

    rows: int | None
    """Train on that many of the rows, drawn uniformly from the seed (Few2Many); None: on all."""
    retriever: RetrieverConfig | None
    """What stands in the prompt; None: the samples' own history."""
    gate: GateConfig | None
    """Over meta-LoRAs of `lora`'s shape; None: one LoRA."""
    recommender: Recommender | None
    """Frozen, its vectors feed the gate; None exactly without a gate."""

    def manifest(self) -> dict[str, Any]:
        """Return the parts as JSON-ready values; the recommender appears by digest."""
        return {
            "rows": self.rows,
            "retriever": self.retriever and self.retriever.model_dump(mode="json"),
            "gate": self.gate and self.gate.model_dump(mode="json"),
            "recommender": self.recommender and self.recommender.digest,
        }


@dataclass(frozen=True, eq=False, repr=False)
class AdapterSpec:
    """Everything that decides an adapter's weights; its SHA-256 is the adapter's name in the store."""

    backbone: str
    """Fingerprint of the frozen model and tokenizer."""
    data: str
    """Fingerprint of log, windows and cut (`Periods.fingerprint`)."""
    train: tuple[Slice, ...]
    """Slices whose rows are trained on."""
    validation: tuple[Slice, ...]
    """Slices whose AUC selects the step that is kept."""
    prompt: PromptConfig
    lora: LoraSettings
    recipe: Recipe
    seed: int
    init: AdapterSpec | None = None
    """Adapter to start from (None: A kaiming-uniform from `start_seed`, B zero)."""
    keep_old: bool = False
    """With `init`: return the initial adapter unchanged when the chosen step does not beat it on the validation
    rows."""
    regulariser: Regulariser | None = None
    frozen: Frozen | None = None
    replay: int = 0
    """Rows drawn by reservoir sampling from all earlier periods' training rows and added to the training rows."""
    half_life: float | None = None
    """Samples of the stream after which a training row counts half (None: all count alike)."""
    reclora: Reclora | None = None

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON, 64 hex digits."""
        return hashlib.sha256(json.dumps(self.manifest(), sort_keys=True).encode()).hexdigest()

    def manifest(self) -> dict[str, Any]:
        """Return the spec as JSON-ready values; other specs appear by digest."""
        tree: dict[str, Any] = {
            "backbone": self.backbone,
            "data": self.data,
            "train": [list(s) for s in self.train],
            "validation": [list(s) for s in self.validation],
            "prompt": self.prompt.model_dump(mode="json"),
            "lora": self.lora.model_dump(mode="json"),
            "recipe": self.recipe.manifest(),
            "seed": self.seed,
            "init": self.init.digest if self.init else None,
            "keep_old": self.keep_old,
            "regulariser": asdict(self.regulariser) if self.regulariser else None,
            "frozen": None,
            "replay": self.replay,
        }
        if self.half_life is not None:  # named only where it is set: adapters from before it keep their names
            tree["half_life"] = self.half_life
        if self.reclora is not None:
            tree["reclora"] = self.reclora.manifest()
        if self.frozen:
            tree["frozen"] = {
                "adapters": [a.digest for a in self.frozen.adapters],
                "kind": self.frozen.kind,
                "weight": self.frozen.weight,
            }
        return tree

    def __eq__(self, other: object) -> bool:
        """Compare by digest: specs nest, and field by field a chain could take 2^t steps."""
        return isinstance(other, AdapterSpec) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        rows = " ".join(f"{s.part}{s.period}" for s in self.train[-3:])
        return f"AdapterSpec({self.digest[:12]}, {len(self.train)} slices up to {rows}, seed {self.seed})"

    @property
    def start_seed(self) -> int:
        """Return the seed of the initial A.

        All adapters of a seed share their A, which LSAT-TA's merge needs. A link of a cumulative chain has its own, or
        all links would look at the same directions of the input.
        """
        if self.frozen is None:
            return self.seed
        return int(np.random.SeedSequence([self.seed, self.last_period]).generate_state(1, np.uint64)[0])

    def parents(self) -> tuple[Any, ...]:
        """Return the specs of the models that must exist before this one can be trained."""
        recommender = self.reclora and self.reclora.recommender
        adapters = ((self.init,) if self.init else ()) + (self.frozen.adapters if self.frozen else ())
        return adapters + ((recommender,) if recommender else ())

    @property
    def last_period(self) -> int:
        """Newest period whose rows this adapter has seen, in training or in selection."""
        return max(s.period for s in (*self.train, *self.validation))
