"""Prefix states that outlive a request: those of the preamble, and those of a user who asks again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from lsat_ray.backbone.states import Layer, PrefixStates

Key = tuple[Any, bytes]
"""What was worn, and the prefix's tokens."""


class StateCache:
    """Prefix states by what was worn when they were computed; the least recently used go first, bounded in bytes.

    An adapter's name is the digest of what it holds, so no swap can meet states of another model under the same name;
    those of a model that is no longer served are dropped.
    """

    def __init__(self, limit: int = 0) -> None:
        """Keep nothing yet, and never more than `limit` bytes."""
        self.limit = limit
        self.bytes = 0
        self.hits, self.misses = 0, 0
        """Tokens of prefixes that were found, and that had to be computed."""
        self._kept: OrderedDict[Key, list[Layer]] = OrderedDict()
        self._worn: set[Any] = set()
        self._lock = threading.Lock()  # the next models are prepared beside the event loop

    def serve(self, worn: Iterable[Any]) -> None:
        """Keep states of these alone, named as `Recommender.passes` does, and drop the others'."""
        with self._lock:
            self._worn = set(worn)
            for key in [key for key in self._kept if key[0] not in self._worn]:
                self._drop(key)

    def find(self, worn: Sequence[Any], prefix: np.ndarray) -> PrefixStates:
        """Return the states of the longest beginning of a prefix that is kept for all that is worn.

        Args:
            worn: names of C adapters that share a pass.
            prefix: int32 [P].
        """
        with self._lock:
            for length in sorted({len(tokens) for _, tokens in self._kept}, reverse=True):
                keys = [(one, prefix.tobytes()[:length]) for one in worn]
                if length <= prefix.nbytes and all(key in self._kept for key in keys):
                    for key in keys:
                        self._kept.move_to_end(key)
                    return PrefixStates(_side_by_side([self._kept[key] for key in keys]))
        return PrefixStates()

    def keep(self, worn: Sequence[Any], prefix: np.ndarray, known: int, states: PrefixStates) -> None:
        """Keep what a pass left, and count its tokens.

        Args:
            worn: names of C adapters that shared the pass.
            prefix: int32 [P].
            known: tokens of it that `find` gave.
            states: of the whole prefix; of less where the backbone keeps none.
        """
        with self._lock:
            self.hits += known * len(worn)
            self.misses += (len(prefix) - known) * len(worn)
            if not known < states.length == len(prefix):
                return
            for number, one in enumerate(worn):
                key = (one, prefix.tobytes())
                if one in self._worn and key not in self._kept:
                    own = slice(number, number + 1)
                    alone = len(worn) == 1
                    layers = [pair if alone else (pair[0][own].clone(), pair[1][own].clone()) for pair in states.layers]
                    self._kept[key] = layers
                    self.bytes += _size(layers)
            while self.bytes > self.limit:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: Key) -> None:
        self.bytes -= _size(self._kept.pop(key))


def _side_by_side(several: Sequence[list[Layer]]) -> list[Layer]:
    """Return the layers of C adapters as one, [C, P, heads, d]; a list of its own, which a pass may extend."""
    if len(several) == 1:
        return list(several[0])
    layers = zip(*several, strict=True)
    return [(torch.cat([k for k, _ in one]), torch.cat([v for _, v in one])) for one in layers]


def _size(layers: list[Layer]) -> int:
    return sum(t.numel() * t.element_size() for pair in layers for t in pair)
