"""What a sample's past says about it, beside the ids: causal statistics and title vectors.

These side features are ours, not the paper's (methods.md 4 knows none): they put in front of every classical model what
the naive rows see, so that a model is judged by what it adds to them. All transforms are fixed, none is fitted to data.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import OrderedDict

import numpy as np
import pandas as pd

from lsat_ray.baselines.spec import ClassicalSpec
from lsat_ray.data.periods import Periods
from lsat_ray.data.windows import Samples

HISTORY = ("like_share", "recent_share", "last_like", "gap")
"""Features read off the sample's own history."""
STREAM = (
    "user_rate",
    "user_count",
    "user_residual",
    "item_rate",
    "item_residual",
    "item_count",
    "item_new",
    "item_recent",
)
"""Features that count the stream. Online: up to, and without, the sample's row, so the labels of earlier rows of the
tested period are in them, exactly as they are in the naive item rate and in the histories. By period: up to the start
of the sample's period, and never past the last period of the model that reads them, so that a stale model ages."""
TITLE = ("year", "age")
"""Features of the title's trailing `(1995)`; zero without one."""

YEAR = re.compile(r"\((\d{4})(?:[-–]\d{0,4})?\)\s*$")
TITLE_WIDTH = 256
_SECONDS_A_YEAR = 31_556_952.0


def before(key: np.ndarray, value: np.ndarray, until: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every row n, the sum of `value` and the count over the rows before `until[n]` with the same key.

    Args:
        key: integers [N].
        value: float [N], in stream order.
        until: integers [N]; None: the row itself.

    Returns:
        Two float64 arrays [N].
    """
    n = len(key)
    code = np.unique(key, return_inverse=True)[1].astype(np.int64) * (n + 1)
    order = np.argsort(code, kind="stable")
    place = code[order] + order  # by key, then by row
    start = np.searchsorted(place, code)
    stop = np.searchsorted(place, code + (np.arange(n) if until is None else until))
    # Summed key by key: a difference of one running sum would carry the rounding of rows that come later.
    running = pd.Series(value[order]).groupby(code[order]).cumsum().to_numpy(dtype=np.float64)
    return np.where(stop > start, running[stop - 1], 0.0), (stop - start).astype(np.float64)


def snapshots(periods: Periods, as_of: int | None) -> np.ndarray:
    """Return, for every sample, the first row that is not counted yet when it is scored, int64 [N].

    Args:
        as_of: last period of the model; None: online, every earlier row is counted. The warm-up is counted in steps
            of the first period's length.
    """
    row = np.arange(len(periods.samples))
    if as_of is None:
        return row
    borders = np.array(periods.borders)
    edges = np.r_[0, np.arange(borders[0], 0, borders[0] - borders[1])[::-1], borders[1:]]
    return np.minimum(edges[np.searchsorted(edges, row, side="right") - 1], borders[as_of])


def title_years(titles: tuple[str, ...]) -> np.ndarray:
    """Return the year that ends each title, NaN without one, float64 [I]."""
    found = (YEAR.search(t) for t in titles)
    return np.array([float(m.group(1)) if m else np.nan for m in found])


@functools.lru_cache(maxsize=4)
def title_vectors(titles: tuple[str, ...], width: int = TITLE_WIDTH) -> np.ndarray:
    """Return a frozen, unlearned embedding of every title: hashed words, word pairs and the decade, float32 [I, width].

    Rows have unit length before the last 16 columns, which hold the decade (one-hot, 1880s to 2030s).
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(n_features=width - 16, ngram_range=(1, 2), norm="l2", dtype=np.float32)
    table = np.zeros((len(titles), width), dtype=np.float32)
    table[:, :-16] = words.transform([YEAR.sub("", t) for t in titles]).toarray()
    year = title_years(titles)
    known = np.flatnonzero(~np.isnan(year))
    decade = np.clip((year[known].astype(int) - 1880) // 10, 0, 15)
    table[known, width - 16 + decade] = 1.0
    table.setflags(write=False)
    return table


def _history(samples: Samples) -> list[np.ndarray]:
    labels = samples.history_label.astype(np.float64)
    width = labels.shape[1]
    weight = 0.5 ** (np.arange(width)[::-1] / 2.0)
    gap = np.maximum(samples.timestamp - samples.history_timestamp[:, -1], 0)
    return [
        labels.mean(axis=1) - 0.5,
        labels @ weight / weight.sum() - 0.5,
        labels[:, -1] - 0.5,
        np.log1p(gap) / 15.0,
    ]


def _stream(samples: Samples, until: np.ndarray) -> list[np.ndarray]:
    label = samples.label.astype(np.float64)
    base = (np.r_[0.0, np.cumsum(label)][until] + 5.0) / (until + 10.0)
    likes, count = before(samples.item, label, until)
    item_rate = (likes + 3.0 * base) / (count + 3.0)
    mine, events = before(samples.user, label, until)
    # A user's first sample shows the events before it; later samples repeat them, so they are counted once.
    first = np.full(int(samples.user.max()) + 1, -1)
    first[samples.user[::-1]] = np.arange(len(label))[::-1]
    first = first[samples.user]
    opened = first <= until
    mine += np.where(opened, samples.history_label.sum(axis=1)[first], 0.0)
    events += np.where(opened, samples.history_label.shape[1], 0.0)
    user_rate = (mine + 5.0 * base) / (events + 5.0)
    item_surprise, _ = before(samples.item, label - user_rate, until)
    user_surprise, seen = before(samples.user, label - item_rate, until)
    era = samples.timestamp // int(_SECONDS_A_YEAR / 2)
    recent, lately = before(samples.item.astype(np.int64) * 100_000 + era, label - user_rate, until)
    return [
        user_rate - base,
        np.log1p(events) / 5.0,
        user_surprise / (seen + 5.0),
        item_rate - base,
        item_surprise / (count + 3.0),
        np.log1p(count) / 5.0,
        (count == 0).astype(np.float64),
        recent / (lately + 3.0),
    ]


def _title(samples: Samples, titles: tuple[str, ...]) -> list[np.ndarray]:
    year = title_years(titles)[samples.item]
    age = 1970.0 + samples.timestamp / _SECONDS_A_YEAR - year
    return [np.nan_to_num((year - 1990.0) / 20.0), np.nan_to_num(np.log1p(np.maximum(age, 0.0)) / 3.0)]


_CACHE: OrderedDict[str, np.ndarray] = OrderedDict()
KEPT = 8
"""Tables that are kept in memory."""


def side_table(periods: Periods, as_of: int | None = None) -> np.ndarray:
    """Return the side features of every sample of the stream, float32 [N, 14], columns HISTORY + STREAM + TITLE.

    Row i is computed from rows before i and from the histories only. The newest tables are kept, each under the labels
    that it was computed from: a reader's view of the stream has its fingerprint, but not the labels that come later.

    Args:
        as_of: period after which nothing is counted any more (`snapshots`); None counts online.
    """
    samples = periods.samples
    labels = hashlib.blake2b(samples.label.tobytes())
    labels.update(samples.history_label.tobytes())
    key = f"{periods.fingerprint} {labels.hexdigest()} {as_of}"
    if key not in _CACHE:
        columns = _history(samples) + _stream(samples, snapshots(periods, as_of)) + _title(samples, periods.titles)
        table = np.stack(columns, axis=1).astype(np.float32)
        if not periods.fingerprint:
            return table
        _CACHE[key] = table
        while len(_CACHE) > KEPT:
            _CACHE.popitem(last=False)
    return _CACHE[key]


def side_of(spec: ClassicalSpec, periods: Periods) -> np.ndarray:
    """Return the side features as the model of a spec sees them, at its own freshness (`side_table`)."""
    return side_table(periods, spec.last_period if spec.recipe.side == "period" else None)


def side_columns(side: str) -> int:
    """Return how many leading columns of `side_table` a network sees: none, or those of HISTORY and STREAM."""
    return 0 if side == "none" else len(HISTORY) + len(STREAM)
