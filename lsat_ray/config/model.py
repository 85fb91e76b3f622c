"""Sections of what is trained: backbone, prompt, adapters, recipes, and those of single methods."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lsat_ray.config.node import Node


class NanoConfig(Node):
    """The small LLaMA that is built from the log before the first period."""

    hidden: int = Field(64, ge=8)
    """Width of the residual stream."""
    layers: int = Field(2, ge=1)
    """Decoder layers."""
    heads: int = Field(4, ge=1)
    """Attention heads."""
    vocabulary: int = Field(768, ge=300)
    """Tokens of the byte-level BPE."""
    context: int = Field(1024, ge=64)
    """Longest sequence of positions."""
    epochs: float = Field(2.0, ge=0)
    """Passes over the samples before the first period."""
    rows: int | None = Field(None, ge=1)
    """Use only the last that many of them (all when null)."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate of AdamW (linear decay)."""
    batch_size: int = Field(32, ge=1)
    """Samples per step."""
    seed: int = 0
    """Seed of weights and order."""


class BackboneConfig(Node):
    """The frozen language model."""

    path: str = "nano"
    """`nano`, a folder in Hugging Face format, or a hub name."""
    revision: str | None = None
    """Commit of a hub model: name one, so that the run can be repeated."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type of the frozen weights; adapters stay float32. `auto`: bfloat16 where the device multiplies it natively, else
    float32; a run's folder names the type that was found."""
    device: str = "auto"
    """`auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:1`."""
    attention: str = "sdpa"
    """transformers' `attn_implementation`."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Quantise the frozen weights with bitsandbytes (GPU)."""
    nano: NanoConfig = NanoConfig()
    """Shape and training of the nano backbone."""


class PromptConfig(Node):
    """The TALLRec prompt and its layout."""

    item_word: str = "movie"
    """What the prompt calls an item (`movie`, `book`)."""
    max_tokens: int = Field(512, ge=32)
    """Longest prompt; the oldest history goes first when a prompt is longer."""
    layout: Literal["exact", "shared-history", "stream"] = "exact"
    """`exact`: one prompt a target; the others share a history among targets."""
    targets: int = Field(8, ge=1)
    """Targets that share a sequence (`shared-history`, `stream`)."""


class LoraSettings(Node):
    """Shape of the adapters (methods.md 1b)."""

    rank: int = Field(8, ge=1)
    """Rank r of the update."""
    alpha: float = Field(16.0, gt=0)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear modules that are adapted."""


class Recipe(Node):
    """How an adapter is fitted; part of its identity."""

    lr: float = Field(1e-3, gt=0)
    """Learning rate of AdamW, constant after the warm-up."""
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    batch_size: int = Field(128, ge=1)
    """Targets per step, over all workers."""
    epochs: int = Field(4, ge=1)
    """Most passes over the data."""
    max_steps: int | None = Field(None, ge=1)
    """Most optimizer steps, where that is less than `epochs` allow (null: `epochs` alone decide)."""
    eval_every: int | None = Field(None, ge=1)
    """Steps between validations (null: see `evals_per_epoch`)."""
    evals_per_epoch: int | None = Field(None, ge=1)
    """Validations per epoch, the last one at its end (null: one, unless `eval_every` is set)."""
    patience: int = Field(2, ge=1)
    """Validations without a better one after which training stops."""
    select: Literal["auc", "log-loss", "smoothed-auc", "one-se", "averaged"] = "log-loss"
    """Which of the validated weights are kept (`training/selection.py`). The default had the highest mean AUC on one
    small stream (`benchmarks/results/noise_floor.json`); the paper's code takes AUC."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    loss: Literal["answer", "language"] = "answer"
    """Cross-entropy over {No, Yes} at the answer, or, as the codes of TALLRec and LSAT, over the whole vocabulary at
    every token of the prompt and at the answer (methods.md 1a)."""
    cadence: Literal["own", "lsat"] = "own"
    """When to validate: as `eval_every`, `evals_per_epoch` and `patience` say, or as the LSAT code does, whatever they
    say: every 23 steps with a patience of 10 for a fresh adapter, every 6 with 5 for one that goes on from another."""

    @model_validator(mode="after")
    def _one_rhythm(self) -> Recipe:
        if self.eval_every and self.evals_per_epoch:
            raise ValueError("eval_every and evals_per_epoch both say when to validate; leave one of them out")
        return self

    def paced(self, fresh: bool) -> Recipe:
        """Return the recipe of one adapter, its cadence written out."""
        if self.cadence == "own":
            return self
        every, patience = (23, 10) if fresh else (6, 5)
        changes = {"cadence": "own", "eval_every": every, "evals_per_epoch": None, "patience": patience}
        return self.model_copy(update=changes)

    def manifest(self) -> dict[str, Any]:
        """Return the recipe as JSON-ready values; keys that came later are named only where they are set, so that
        adapters from before them keep their names."""
        later = {"loss": "answer", "cadence": "own"}
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in later or v != later[k]}


class ClassicalRecipe(Node):
    """How a classical rival is fitted; part of its identity. The first block is the paper's, the second is ours."""

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
    epochs: int = Field(50, ge=1)
    """Most passes over the rows; enough that patience ends a fit, not this."""
    patience: int = Field(5, ge=1)
    """Epochs in a row that validate no better, after which fitting stops."""
    select: Literal["auc", "loss"] = "auc"
    """What is compared on V_t: the AUC, or the loss that is fitted."""

    side: Literal["none", "period", "online"] = "none"
    """Counts of the stream that a model sees (`features.py`): none, as in the paper; up to the end of the model's own
    last period; up to the scored row. Rows named `+side@period` and `+side` see the second and the third whatever this
    says."""
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


class PesoConfig(Node):
    """The rows `peso*` of the Yes/No task (methods.md 5b)."""

    lambdas: tuple[Annotated[float, Field(gt=0)], ...] = Field((0.5, 1.0, 2.0, 5.0, 8.0), min_length=1)
    """Weights of the penalty among which `peso` and `peso-mean` choose on V_t; the default is the authors' grid."""
    later_lr: float | None = Field(None, gt=0)
    """Learning rate of what starts from an earlier adapter under a penalty (null: `recipe.lr`)."""

    @field_validator("lambdas")
    @classmethod
    def _distinct(cls, given: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(given)) < len(given):
            raise ValueError("a weight occurs twice; name each once")
        return given


class GenerativeConfig(Node):
    """The second task: the next item as semantic IDs, on published blocks (methods.md 5g); a fit is one process."""

    split: Literal["leave-two-out", "next-period"] = "leave-two-out"
    """Test on a user's last event of the block itself (PESO), or on every event of the next block (LSAT)."""
    history: int = Field(20, ge=1)
    """Most items before a target."""
    temperature: float = Field(0.8, gt=0)
    """The loss divides the logits by it."""
    train_codes: bool = True
    """Whether the codes' rows of embedding and head are trained with the adapter, as in the paper."""
    later_lr: float | None = Field(None, gt=0)
    """Learning rate of what starts from an earlier adapter or trains on a later block alone (null: `recipe.lr`)."""
    beams: tuple[Annotated[int, Field(ge=10)], ...] = Field((10, 40), min_length=1)
    """Beams of the constrained search; the table has rows for each."""
    collisions: Literal["code", "item"] = "code"
    """Whether items that share their codes count as one candidate (as published) or as several."""
    reference: str = "single-evolving"
    """Strategy that the others are compared with."""


class RetrieverConfig(Node):
    """Which events of a user's past stand in the prompt."""

    order: Literal["recent", "retrieved", "sequential"] = "sequential"
    """The newest; those whose titles are most like the target's, the most similar last; the same in time order."""
    past: int = Field(60, ge=1)
    """Newest events among which is chosen."""
    events: int = Field(10, ge=1)
    """K, events in the prompt."""


class GateConfig(Node):
    """The gate over meta-LoRAs: weights for every sample and adapted module."""

    members: int = Field(4, ge=2)
    """N, meta-LoRAs of `lora.rank` each."""
    mix: Literal["products", "factors"] = "products"
    """sum g B A, as in the paper, or (sum g B)(sum g A), as in its code."""
    hidden: int = Field(60, ge=1)
    """Hidden units of each module's gate."""
    temperature: float = Field(1.0, gt=0)
    """Divides the gate's logits before the softmax."""


class RecloraConfig(Node):
    """The rows `reclora*` and `tallrec` (methods.md 6)."""

    past: int = Field(60, ge=1)
    """Most events in the history of `din`, the frozen conventional recommender."""
    rows: int = Field(4096, ge=1)
    """Rows that the language model trains on, drawn from those that the recommender trains on."""
    retriever: RetrieverConfig = RetrieverConfig()
    gate: GateConfig = GateConfig()
