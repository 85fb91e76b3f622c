"""Which events of a user's long past stand in the prompt (RecLoRA's and ReLLa's retriever; methods.md 6)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lsat_ray.config import RetrieverConfig
from lsat_ray.data.windows import Samples


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Return the rows without their mean, each of length one: what is common to all titles tells none apart."""
    centred = vectors - vectors.mean(axis=0)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12))


def retrieve(samples: Samples, titles: np.ndarray, config: RetrieverConfig) -> Samples:
    """Return the samples with K = `config.events` events in their histories; missing ones are items of -1, on the left.

    `recent` takes the newest, `retrieved` those whose titles are most like the target's, the most similar last, and
    `sequential` the same events in time order. Of equally similar events the newest is taken.

    Args:
        samples: with long histories, padded on the left with items of -1.
        titles: float [I, d], rows of length one.
        config: order and number.
    """
    width = samples.history_item.shape[1]
    kept = min(config.events, width)
    if config.order == "recent":
        chosen = np.broadcast_to(np.arange(width - kept, width), (len(samples), kept))
    else:
        like = np.einsum("nld,nd->nl", titles[samples.history_item], titles[samples.item])
        like = np.where(samples.history_item < 0, -np.inf, like)
        chosen = np.argsort(like, axis=1, kind="stable")[:, width - kept :]
        if config.order == "sequential":
            chosen = np.sort(chosen, axis=1)
    return replace(
        samples,
        **{
            name: np.take_along_axis(getattr(samples, name), chosen, axis=1)
            for name in ("history_item", "history_label", "history_timestamp")
        },
    )
