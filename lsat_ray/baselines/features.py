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
from sklearn.feature_extraction.text import HashingVectorizer

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
"""Features that count the stream up to, and without, the sample's row: the labels of earlier rows of the tested period
are in them, exactly as they are in the naive item rate and in the histories."""
TITLE = ("year", "age")
"""Features of the title's trailing `(1995)`; zero without one."""

YEAR = re.compile(r"\((\d{4})(?:[-–]\d{0,4})?\)\s*$")
TITLE_WIDTH = 256
_SECONDS_A_YEAR = 31_556_952.0


def before(key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every row, the sum of `value` and the count over the earlier rows with the same key.

    Args:
        key: integers [N].
        value: float [N], in stream order.

    Returns:
        Two float64 arrays [N].
    """
    order = np.argsort(key, kind="stable")
    sorted_key = key[order]
    start = np.searchsorted(sorted_key, sorted_key, side="left")
    running = np.r_[0.0, np.cumsum(value[order])]
    position = np.arange(len(key))
    total, count = np.empty(len(key)), np.empty(len(key))
    total[order] = running[position] - running[start]
    count[order] = position - start
    return total, count


def title_years(titles: tuple[str, ...]) -> np.ndarray:
    """Return the year that ends each title, NaN without one, float64 [I]."""
    found = (YEAR.search(t) for t in titles)
    return np.array([float(m.group(1)) if m else np.nan for m in found])


@functools.lru_cache(maxsize=4)
def title_vectors(titles: tuple[str, ...], width: int = TITLE_WIDTH) -> np.ndarray:
    """Return a frozen, unlearned embedding of every title: hashed words, word pairs and the decade, float32 [I, width].

    Rows have unit length before the last 16 columns, which hold the decade (one-hot, 1880s to 2030s).
    """
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


def _stream(samples: Samples) -> list[np.ndarray]:
    label = samples.label.astype(np.float64)
    base = (np.r_[0.0, np.cumsum(label)[:-1]] + 5.0) / (np.arange(len(label)) + 10.0)
    likes, count = before(samples.item, label)
    item_rate = (likes + 3.0 * base) / (count + 3.0)
    mine, events = before(samples.user, label)
    # A user's first sample shows the events before it; later samples repeat them, so they are counted once.
    first = np.full(int(samples.user.max()) + 1, -1)
    first[samples.user[::-1]] = np.arange(len(label))[::-1]
    mine += samples.history_label.sum(axis=1)[first[samples.user]]
    events += samples.history_label.shape[1]
    user_rate = (mine + 5.0 * base) / (events + 5.0)
    item_surprise, _ = before(samples.item, label - user_rate)
    user_surprise, seen = before(samples.user, label - item_rate)
    era = samples.timestamp // int(_SECONDS_A_YEAR / 2)
    recent, lately = before(samples.item.astype(np.int64) * 100_000 + era, label - user_rate)
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


def side_table(periods: Periods) -> np.ndarray:
    """Return the side features of every sample of the stream, float32 [N, 14], columns HISTORY + STREAM + TITLE.

    Row i is computed from rows before i and from the histories only. The newest tables are kept, each under the labels
    that it was computed from: a reader's view of the stream has its fingerprint, but not the labels that come later.
    """
    samples = periods.samples
    labels = hashlib.blake2b(samples.label.tobytes())
    labels.update(samples.history_label.tobytes())
    key = f"{periods.fingerprint} {labels.hexdigest()}"
    if key not in _CACHE:
        columns = _history(samples) + _stream(samples) + _title(samples, periods.titles)
        table = np.stack(columns, axis=1).astype(np.float32)
        if not periods.fingerprint:
            return table
        _CACHE[key] = table
        while len(_CACHE) > KEPT:
            _CACHE.popitem(last=False)
    return _CACHE[key]


def side_columns(side: str) -> int:
    """Return how many leading columns of `side_table` a model sees under `none`, `history` or `stream`."""
    return {"none": 0, "history": len(HISTORY), "stream": len(HISTORY) + len(STREAM)}[side]
