"""Sections of how a run goes: engine, search, endpoint, replay and study."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from lsat_ray.config.node import Node

Select = Literal["posterior-mean", "log-loss", "auc"]
"""By what merge weights are chosen on V_t."""


class EngineConfig(Node):
    """Where and how adapters are trained; not part of their identity."""

    backend: Literal["ray", "local"] = "ray"
    """`ray`: actors, Train, Tune and Serve; `local`: one process with plain torch, no cluster and no ports."""
    kind: Literal["torch", "deepspeed"] = "deepspeed"
    """Plain torch (data parallel where there are several workers), or DeepSpeed."""
    zero: Literal["auto", 0, 1, 2, 3] = 1
    """ZeRO stage; `auto`: the lowest that fits by an estimate of memory (`training/memory.py`), which is printed. Under
    3 every worker loads its shard of the frozen backbone; 1 and 2 split the adapter's optimizer alone."""
    sessions: int = Field(1, ge=1)
    """Training sessions at once, each with its own workers."""
    workers: int = Field(2, ge=1)
    """Workers per session; the local backend computes their shares in one process."""
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
    """Weights of the long-term adapter that are tried, in [0, 1]."""
    space: Literal["probability", "logit", "double-softmax"] = "probability"
    """What an output ensemble averages: P(Yes), the margin, or the score of the LSAT code (methods.md 1d)."""
    select: Select = "posterior-mean"
    """How V_t decides: the weights of the highest AUC, as in the LSAT code, or of the lowest log-loss (the first of
    equals), or the mean of all weights in the grid, each counted by the likelihood of V_t under it. AUC on the few rows
    of V_t is a staircase, and rounding decides between its steps; the mean has no steps."""

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
    catalogue: str | None = None
    """Text file, one title per line, most popular first: what a ranking orders that is sent no candidates."""
    shortlist: int = Field(100, ge=1, le=1000)
    """Titles of the catalogue that are scored then: the first that the history does not hold."""
    states_mib: int = Field(64, ge=0)
    """MiB of prefix states (keys and values of the preamble and of histories) that a replica keeps between requests, so
    that a user who asks again is not computed again (0: none)."""
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
    against: str | None = None
    """Row that `study/paired.csv` compares all others with, by its name in the tables (null: full retraining alone is
    compared with, in Table 2)."""
    figures: bool = True
    """Draw the figures of the report; most of what a report costs."""
    lags: tuple[int, ...] = ()
    """Serving lags k >= 2: the model of period t - k is tested on D_t as well (1 is the table itself)."""
