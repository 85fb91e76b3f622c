"""Merge weights learned by gradient: one for every adapter and module (methods.md 7.3, 7.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.adapters.merge import delta_arithmetic
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded, collate, token_budget_batches
from lsat_ray.training.magnitudes import layers, weighted


def fit_coefficients(
    model: AdaptedBackbone,
    adapters: Sequence[Adapter],
    rows: Encoded,
    pull: float = 0.1,
    steps: int = 30,
    lr: float = 0.05,
    batch_tokens: int = 16384,
) -> tuple[float, ...]:
    """Fit the weights of the merge `learned-delta`; everything else stays frozen.

    Minimises the mean cross-entropy over {No, Yes} on the rows plus `pull * mean((w - 1/N)^2)` by Adam, from 1/N
    everywhere; every step sees all rows, so that nothing is random.

    Args:
        model: the backbone; its active slot is replaced.
        adapters: N of them.
        rows: encoded V_t, or the next seen period for SML.
        pull: strength of the pull to the uniform average; without one, a few hundred weights over-fit a thousand rows.
        steps: optimizer steps, each over all rows.
        lr: of Adam; a weight moves by at most about `lr` per step.
        batch_tokens: most padded tokens per forward pass.

    Returns:
        N * M weights in the order that `learned_delta` reads.

    Raises:
        LsatError: when there are no rows, or the loss is not finite.
    """
    if len(rows.row) == 0:
        raise LsatError("coefficients: there are no rows to fit on")
    count = len(adapters)
    model.wear(delta_arithmetic(adapters, [1.0] * count))
    slot = model.peft.active_adapter
    for parameter in model.slot_parameters(slot).values():
        parameter.requires_grad_(False)
    modules = len(layers(model, slot))
    weights = torch.full((modules, count), 1.0 / count, device=model.device, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=lr)
    model.eval()
    with weighted(model, slot, lambda: weights, [a.rank for a in adapters]):
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            penalty = pull * (weights - 1.0 / count).square().mean()
            penalty.backward()
            for group in token_budget_batches(rows, batch_tokens):
                batch = collate(rows, group).to(model.device)
                loss = functional.cross_entropy(model(batch), batch.label.long(), reduction="sum") / len(rows.row)
                if not torch.isfinite(loss):
                    raise LsatError(f"coefficients: the loss is {loss.item()}; use backbone.dtype=bfloat16 or float32")
                loss.backward()
            optimizer.step()
    return tuple(float(w) for w in weights.detach().T.flatten())
