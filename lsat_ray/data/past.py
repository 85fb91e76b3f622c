"""A user's past beyond the history of a sample, and a sample of rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lsat_ray.data.windows import Samples


def lengthened(stream: Samples, samples: Samples, length: int) -> Samples:
    """Return samples whose histories hold up to `length` events, oldest first, padded on the left with items of -1.

    A user's events are the history of their first sample and then their targets; a sample sees those up to its own
    history's last, so ties are treated as the histories treat them. (Where ties are excluded, a user's first sample may
    have more behind it than its history; that is lost.)

    Args:
        stream: all samples so far, in time order, `samples` among them.
        samples: whose histories are wanted.
        length: most events.
    """
    order = np.argsort(stream.user, kind="stable")
    user, first, count = np.unique(stream.user[order], return_index=True, return_counts=True)
    width = stream.history_item.shape[1]
    begin = first + width * np.arange(len(user))  # where each user's events begin
    place = np.arange(len(order)) + width * (1 + np.repeat(np.arange(len(user)), count))  # of each target
    opening = (begin[:, None] + np.arange(width)).ravel()

    def events(target: np.ndarray, history: np.ndarray) -> np.ndarray:
        out = np.empty(len(order) + width * len(user), dtype=history.dtype)
        out[place], out[opening] = target[order], history[order[first]].ravel()
        return out

    moment = events(stream.timestamp, stream.history_timestamp)
    code = np.repeat(np.arange(len(user)), count + width)
    steps, rank = np.unique(moment, return_inverse=True)
    key = code * (len(steps) + 1) + rank
    at = np.empty(len(order), dtype=np.int64)
    at[order] = place
    at = at[np.searchsorted(stream.row, samples.row)]
    mine = code[at]
    newest = np.searchsorted(steps, samples.history_timestamp[:, -1])
    end = np.minimum(at, np.searchsorted(key, mine * (len(steps) + 1) + newest, side="right"))
    index = end[:, None] - length + np.arange(length)
    real = index >= begin[mine][:, None]
    index = np.where(real, index, 0)

    def column(values: np.ndarray, fill: int) -> np.ndarray:
        return np.where(real, values[index], fill).astype(values.dtype)

    return replace(
        samples,
        history_item=column(events(stream.item, stream.history_item), -1),
        history_label=column(events(stream.label, stream.history_label), 0),
        history_timestamp=column(moment, 0),
    )


def few(samples: Samples, count: int, seed: int) -> Samples:
    """Return `count` of the samples (all where there are no more), drawn uniformly, in their order."""
    if count >= len(samples):
        return samples
    return samples.take(np.sort(np.random.default_rng([seed, 11]).choice(len(samples), count, replace=False)))
