"""One frozen, typed tree for an experiment: YAML in, resolved YAML out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lsat_ray.errors import LsatError


class Node(BaseModel):
    """A section of the tree: immutable, typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class SyntheticConfig(Node):
    """The embedded stream with known truth (`data/synthetic.py`): what `data.keep_last` asks for after a warm-up.

    Time is counted in samples of the whole stream, never in periods: every cut of a stream has the same labels.
    """

    users: int = Field(400, ge=2)
    """Users over the whole stream."""
    items: int = Field(300, ge=2)
    """Items over the whole stream."""
    warmup: int = Field(12000, ge=0)
    """Samples before the first period: the nano backbone is built from them."""
    taste: float = Field(0.3, ge=0)
    """Standard deviation of a user's stable taste for each attribute (long-term preference)."""
    positivity: float = Field(1.0, ge=0)
    """Standard deviation of a user's general tendency to like."""
    quality: float = Field(0.7, ge=0)
    """Standard deviation of an attribute's stable quality."""
    drift: float = Field(1.2, ge=0)
    """Stationary standard deviation of the trend over attributes (everyone's short-term preference); 0 for none."""
    half_life: float = Field(2000.0, gt=0)
    """Samples (not periods) after which half of a trend is forgotten."""
    interest: float = Field(0.0, ge=0)
    """Stationary standard deviation of a user's own short-lived interest in each attribute (short-term preference)."""
    interest_half_life: float = Field(2000.0, gt=0)
    """Samples of the whole stream after which half of a user's interest is forgotten."""
    new_users: float = Field(0.3, ge=0, le=1)
    """Share of users who arrive during the periods rather than before them."""
    new_items: float = Field(0.3, ge=0, le=1)
    """Share of items that arrive during the periods rather than before them."""
    noise: float = Field(0.05, ge=0, lt=0.5)
    """Probability that a label is flipped."""
    seed: int = 0
    """Seed of the stream (not of the training)."""


class AmazonConfig(Node):
    """Filters of the LSAT paper's Amazon-Book protocol (methods.md 0.3)."""

    min_user_events: int = Field(11, ge=1)
    """Keep users with at least that many reviews over all time."""
    sample_users: float = Field(1.0, gt=0, le=1)
    """Share of the kept users that is sampled (pandas `sample`, seed 0)."""
    min_title_events: int = Field(1, ge=1)
    """Keep rows whose title occurs at least that often among the sampled users' rows."""


class DataConfig(Node):
    """Which log, and how it becomes samples."""

    format: Literal["synthetic", "movielens", "amazon", "recbole", "blocks"] = "synthetic"
    """Layout of the log; `blocks` is the next-item task of `generative`, as `lsat-ray study` runs it."""
    path: str | None = None
    """Folder (or ratings file) of the log; `$VARIABLES` are expanded."""
    metadata: str | None = None
    """Amazon: the `meta_*.json[.gz]` file with the titles."""
    positive_above: float = 3.0
    """A rating above this is a like (methods.md 0.1)."""
    history: int = Field(10, ge=1)
    """Interactions in a sample's history; targets with fewer are not samples."""
    ties: Literal["file-order", "exclude"] = "file-order"
    """Whether a history may hold events of the target's own second (`file-order`, as in the paper's code) or not."""
    duplicates: Literal["drop", "keep", "refuse"] = "drop"
    """What becomes of rows that repeat an earlier one (same user, item, rating and second): each puts a target into its
    own history. The count is reported."""
    keep_last: int | None = Field(None, ge=1)
    """Keep the last that many samples in time as the periods; what is before them is the backbone's. The synthetic
    stream is made that long, after its warm-up (null: 10,000)."""
    start: int | None = None
    """Unix second: targets before it are before the first period."""
    end: int | None = None
    """Unix second: targets at or after it are dropped."""
    amazon: AmazonConfig = AmazonConfig()
    """Filters of the Amazon reader."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """Knobs of the embedded stream."""


class PeriodsConfig(Node):
    """How the samples are cut into periods D_1..D_T."""

    cut: Literal["count", "time", "dates"] = "count"
    """Equal count, equal time span, or at given dates."""
    number: int = Field(20, ge=2)
    """T, the number of periods (`count` and `time`)."""
    dates: tuple[str, ...] = ()
    """`dates`: ISO dates (UTC) of the T + 1 borders."""
    validation: float = Field(0.1, gt=0, lt=1)
    """Share of a period's rows, the last in time, that is its validation split V_t."""
    validation_by: Literal["time", "user"] = "time"
    """V_t is the last share of the period's rows, or of every user's rows in it (more users, each with some)."""
    validation_pool: int = Field(1, ge=1)
    """Merge weights are chosen on the validation splits of the last that many periods, each scored by the adapters of
    its own period, which have not trained on it; the step that is kept is always chosen on V_t alone."""


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
    """Which of the validated weights are kept (`training/selection.py`). The default has the highest mean AUC, at a
    spread far below any difference of interest (`benchmarks/results/noise_floor.json`); the paper's code takes AUC."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""

    @model_validator(mode="after")
    def _one_rhythm(self) -> Recipe:
        if self.eval_every and self.evals_per_epoch:
            raise ValueError("eval_every and evals_per_epoch both say when to validate; leave one of them out")
        return self


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


class EngineConfig(Node):
    """Where and how adapters are trained; not part of their identity."""

    backend: Literal["ray", "local"] = "ray"
    """`ray`: actors, Train, Tune and Serve; `local`: one process with plain torch, no cluster and no ports."""
    kind: Literal["torch", "deepspeed"] = "deepspeed"
    """Plain torch (data parallel where there are several workers), or DeepSpeed."""
    zero: Literal["auto", 0, 1, 2, 3] = 1
    """ZeRO stage; `auto`: the lowest that fits by an estimate of memory (`training/memory.py`), which is printed."""
    sessions: int = Field(1, ge=1)
    """Training sessions at once, each with its own workers."""
    workers: int = Field(2, ge=1)
    """Workers per session."""
    gpus: float = Field(0, ge=0)
    """GPUs per worker."""
    cpus: float = Field(0.25, gt=0)
    """Logical CPUs that a worker asks Ray for; small, so that the whole loop fits a laptop."""
    threads: int = Field(1, ge=1)
    """CPU threads per worker."""
    micro_batches: int = Field(1, ge=1)
    """Pieces into which a worker's share of a batch is cut (gradient accumulation)."""
    batch_tokens: int = Field(16384, ge=64)
    """Most tokens, padding included, in one forward pass without gradients."""
    checkpointing: bool = False
    """Recompute activations in the backward pass, which saves memory."""
    packing: bool = False
    """Compute no padding (exact layout): all prompts of a batch in one row, attention block by block."""
    checkpoint_every: int = Field(200, ge=1)
    """Steps between two states of a half-fitted adapter, from which a restarted session goes on."""
    max_failures: int = Field(2, ge=0)
    """Times that one task is tried again after its worker died; each task is counted by itself."""
    on_failure: Literal["stop", "keep-last"] = "stop"
    """What a replay does when a training has failed for good: end with its error, or keep serving the last good models
    of the rows that wanted it, mark them stale, and go on. The same command tries it again."""


class SearchConfig(Node):
    """The search of alpha and lambda on V_t."""

    grid: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), min_length=1
    )
    """Weights of the long-term adapter that are tried, in [0, 1]; of equally good ones the first wins."""
    space: Literal["probability", "logit"] = "probability"
    """What an output ensemble averages."""

    @field_validator("grid")
    @classmethod
    def _distinct(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(grid)) < len(grid):
            raise ValueError("a weight occurs twice; name each once")
        return grid


class ServeConfig(Node):
    """The endpoint."""

    host: str = "127.0.0.1"
    """Address of the HTTP proxy."""
    port: int = Field(8000, ge=1, le=65535)
    """Port of the HTTP proxy."""
    replicas: int = Field(1, ge=1)
    """Copies of the model."""
    gpus: float = Field(0, ge=0)
    """GPUs per replica; unset, it follows `engine.gpus`."""
    cpus: float = Field(0.25, ge=0)
    """Logical CPUs a replica asks Ray for; small, so that the whole loop fits a laptop."""
    threads: int = Field(1, ge=1)
    """CPU threads a replica."""
    default: str | None = None
    """Name of the model that answers where a request names none (null: the first of `strategies`)."""
    deadline_s: float = Field(2.0, gt=0)
    """Seconds that a request waits for its turn; what would wait longer is refused with 429."""
    start_s: float = Field(600.0, gt=0)
    """Seconds in which the replicas must be up."""
    token_env: str | None = None
    """Environment variable with the bearer token that the endpoint asks for (null: none, on loopback only)."""
    keep: bool = False
    """Keep serving after the replay has ended, on a cluster that outlives the job."""


class ReplayConfig(Node):
    """The stream."""

    first_test: int | None = Field(None, ge=2)
    """First period that is tested on (null: m + 1)."""
    lookahead: int = Field(2, ge=1)
    """Most periods that the replayer holds ahead of the consumer."""
    long_periods: int = Field(10, ge=1)
    """m: the long-term adapter is fit on D_1..D_m and then held."""


class StudyConfig(Node):
    """What `jobs/compare_strategies.py` adds to the table."""

    every_period: bool = True
    """Fig. 2 and 4: score every period's model of full retraining and fine-tuning on the last period (first seed)."""
    warm_cold_after: int | None = Field(None, ge=1)
    """Fig. 3: score the models of this period on all later ones, warm and cold (null: three quarters of T)."""
    warm_until: int | None = Field(None, ge=1)
    """Fig. 4: an item is warm when it occurs in D_1..D_this (null: m)."""
    demonstrations: int = Field(2, ge=0)
    """Solved rows in an in-context prompt."""
    paper: Literal["ml-1m", "amazon-book"] | None = None
    """The log is that of the LSAT paper: its printed numbers stand beside ours."""
    noise: float | None = Field(None, ge=0)
    """Noise floor of mean AUC (`benchmarks/noise_floor.py`), printed under every table: what is below is no
    difference."""
    lags: tuple[int, ...] = ()
    """Serving lags k >= 2: the model of period t - k is tested on D_t as well (1 is the table itself)."""


class GenerativeConfig(Node):
    """The second task: the next item as semantic IDs, on published blocks (methods.md 5g), always in one process."""

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


DEFAULT_STRATEGIES = (
    "full-retraining",
    "fine-tuning",
    "short-term",
    "long-term",
    "lsat-en",
    "lsat-en-full",
    "lsat-ta",
    "hedge",
)


class Experiment(Node):
    """One experiment."""

    name: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder under the runs directory."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Seeds of the adapters."""
    strategies: tuple[str, ...] = DEFAULT_STRATEGIES
    """Update strategies that are compared (`strategies/__init__.py`)."""
    data: DataConfig = DataConfig()
    periods: PeriodsConfig = PeriodsConfig()
    backbone: BackboneConfig = BackboneConfig()
    prompt: PromptConfig = PromptConfig()
    lora: LoraSettings = LoraSettings()
    recipe: Recipe = Recipe()
    baselines: ClassicalRecipe = ClassicalRecipe()
    engine: EngineConfig = EngineConfig()
    search: SearchConfig = SearchConfig()
    serve: ServeConfig = ServeConfig()
    replay: ReplayConfig = ReplayConfig()
    study: StudyConfig = StudyConfig()
    generative: GenerativeConfig = GenerativeConfig()
    reclora: RecloraConfig = RecloraConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.data.format != "synthetic" and not self.data.path:
            raise ValueError(f"data.path: missing; format {self.data.format!r} reads a log, say where it lies")
        periods = len(self.periods.dates) - 1 if self.periods.cut == "dates" else self.periods.number
        if self.first_test > periods:
            raise ValueError(
                f"replay.first_test: {self.first_test} is past the last period {periods}; "
                "lower replay.long_periods or replay.first_test, or cut more periods"
            )
        return self

    @model_validator(mode="after")
    def _serve_gpus_follow(self) -> Experiment:
        if "gpus" not in self.serve.model_fields_set and self.serve.gpus != self.engine.gpus:
            object.__setattr__(self, "serve", self.serve.model_copy(update={"gpus": self.engine.gpus}))
        return self

    @property
    def first_test(self) -> int:
        """First period (1-based) that is tested on."""
        return self.replay.first_test or self.replay.long_periods + 1

    def to_yaml(self) -> str:
        """Return the resolved tree as YAML that `load` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load(path: str | Path | None, overrides: list[str] | tuple[str, ...] = (), name: str | None = None) -> Experiment:
    """Read one experiment.

    Args:
        path: YAML file, or None for the embedded default.
        overrides: `section.key=value` pairs, the value in YAML syntax.
        name: replaces the experiment's name; without either it is the file's stem.

    Raises:
        LsatError: naming file, key and remedy.
    """
    source = str(path) if path else "defaults"
    tree: dict[str, Any] = {}
    if path:
        try:
            loaded = yaml.safe_load(Path(path).read_text())
        except FileNotFoundError as error:
            raise LsatError(f"{path}: no such config; shipped ones lie in jobs/configs/") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise LsatError(f"{path}: not YAML ({' '.join(str(error).split())}); mend the file") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise LsatError(f"{path}: expected `key: value` sections at the top, found {type(loaded).__name__}")
        tree = loaded or {}
        tree.setdefault("name", Path(path).stem)
    for override in overrides:
        _override(tree, override)
    if name:
        tree["name"] = name
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        lines = [f"{_source(e, source, overrides)}: {_explain(e)}" for e in error.errors()]
        raise LsatError("; ".join(lines)) from error


def _source(error: Any, source: str, overrides: Sequence[str]) -> str:
    """Return `--set key=value` where an override is at fault, else the file."""
    place = ".".join(map(str, error["loc"]))
    for override in reversed(overrides):
        key = override.partition("=")[0].strip()
        related = f"{place}.".startswith(f"{key}.") or f"{key}.".startswith(f"{place}.")
        if related if place else key in error["msg"]:
            return f"--set {override}"
    return source


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise LsatError(f"--set {override}: expected section.key=value, as in --set recipe.lr=0.001")
    *parents, leaf = key.strip().split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise LsatError(f"--set {override}: `{parent}` is a value, not a section")
        node = child
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise LsatError(f"--set {override}: the value is not YAML; quote it") from error


def _explain(error: Any) -> str:
    """Turn one pydantic error into `key: what; remedy`."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        model: Any = Experiment
        for part in error["loc"][:-1]:
            model = model.model_fields[part].annotation
        known = list(model.model_fields)
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
        return f"key `{key}` is unknown; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if not key else f" (given {error.get('input')!r})"
    return f"key `{key}`: {message}{given}" if key else message
