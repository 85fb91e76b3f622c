"""Score samples with an adapter: the margin l_Yes - l_No of each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.backbone.states import PrefixStates
from lsat_ray.prompts.batch import Batch, Encoded, collate, token_budget_batches


def margins(
    logits: Callable[[Batch], torch.Tensor],
    encoded: Encoded,
    device: torch.device | str,
    batch_tokens: int = 16384,
    sequences: np.ndarray | None = None,
    share: tuple[int, int] = (0, 1),
) -> tuple[np.ndarray, np.ndarray]:
    """Return (index int64 [M], margin float32 [..., M]) of the targets of some sequences (all when None).

    A pass that runs out of memory is done again in halves. Whole passes are dealt to workers, so that a target stands
    in the same pass, and its margin has the same bytes, whatever their number; a worker whose turn is empty repeats the
    last pass, so that all take part in what ZeRO-3 gathers.

    Args:
        logits: batch -> float [..., N, 2], logits of (No, Yes).
        encoded: the sequences.
        device: where the batches go.
        batch_tokens: most padded tokens in a pass.
        sequences: which of them.
        share: (number of this worker, workers).
    """
    indices, values = [np.empty(0, np.int64)], list[np.ndarray]()
    with torch.no_grad():
        number, workers = share
        passes = token_budget_batches(encoded, batch_tokens, sequences)
        groups = passes[number::workers]
        idle = len(passes[::workers]) - len(groups)
        groups = groups[::-1]
        while groups:
            group = groups.pop()
            batch = collate(encoded, group).to(device)
            try:
                pair = logits(batch)
            except torch.OutOfMemoryError:
                if len(group) == 1:
                    raise
                groups += np.array_split(group, 2)[::-1]
                continue
            values.append((pair[..., 1] - pair[..., 0]).float().cpu().numpy())
            indices.append(batch.index)
        for _ in range(idle):
            logits(collate(encoded, passes[-1]).to(device))
    return np.concatenate(indices), np.concatenate(values or [np.empty(0, np.float32)], axis=-1)


def part(
    model: AdaptedBackbone,
    adapters: Sequence[Adapter | None],
    encoded: Encoded,
    batch_tokens: int = 16384,
    sequences: np.ndarray | None = None,
    states: PrefixStates | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (index, margin [C, M]) of the targets of some sequences (all when None), C adapters in one pass.

    Args:
        model: whose frozen weights all share; several adapters ask for `wears_several`.
        adapters: C of them; None is the frozen backbone.
        encoded: the sequences.
        batch_tokens: most padded tokens in a pass, without the copies.
        sequences: which of them.
        states: of the prefix under these adapters, read and kept.
    """
    if model.training:  # the walk over all modules costs a tenth of a short pass
        model.eval()
    if len(adapters) > 1:
        model.wear_several(adapters)
        several = partial(model.several, count=len(adapters), states=states)
        return margins(several, encoded, model.device, batch_tokens, sequences)
    (adapter,), alone = adapters, partial(model, states=states)
    if adapter is None:
        with model.bare():
            index, value = margins(alone, encoded, model.device, batch_tokens, sequences)
    else:
        model.wear(adapter)
        index, value = margins(alone, encoded, model.device, batch_tokens, sequences)
    return index, value[None]


def score(model: AdaptedBackbone, adapter: Adapter | None, encoded: Encoded, batch_tokens: int = 16384) -> np.ndarray:
    """Return float32 [N], l_Yes - l_No of every target in the order of `encoded.row`; None is the frozen backbone."""
    index, (value,) = part(model, [adapter], encoded, batch_tokens)
    out = np.empty(len(index), dtype=np.float32)
    out[index] = value
    return out
