"""How the frozen weights are split over workers while they are loaded: not at all, unless an engine says otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch


class Sharding(Protocol):
    """What `backbone.load` needs of an engine whose workers hold a shard of every weight each (ZeRO-3).

    All workers enter each context at the same time.
    """

    def loading(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Let transformers' `from_pretrained` keep this worker's shard of each weight alone."""

    def gathered(self, parameters: Iterable[torch.Tensor]) -> AbstractContextManager[None]:
        """Put some weights together, to be read."""

    def running(self, model: Any) -> AbstractContextManager[None]:
        """Let the model run: each layer's weights are put together when their turn comes, and dropped."""


class Whole:
    """Every worker holds every weight."""

    def loading(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        return nullcontext()

    def gathered(self, parameters: Iterable[torch.Tensor]) -> AbstractContextManager[None]:
        return nullcontext()

    def running(self, model: Any) -> AbstractContextManager[None]:
        return nullcontext()
