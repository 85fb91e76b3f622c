"""Sections of the log: where it comes from and how it is cut."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lsat_ray.config.node import Node


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
