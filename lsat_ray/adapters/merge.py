"""Merges of adapters in parameter space; the algebra is exact or named otherwise (methods.md 2 and 7.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.lowrank import product_svd, truncated_svd
from lsat_ray.errors import LsatError

Merge = Callable[[Sequence[Adapter], Sequence[float]], Adapter]
"""(adapters, weights) -> one adapter; the same arguments always give the same result."""


def factor_arithmetic(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Average A and B separately, entry by entry, as the LSAT code does (LSAT-TA).

    The merged update holds cross terms: with weights (l, 1 - l) it is
    `scale * (l B_h + (1 - l) B_t)(l A_h + (1 - l) A_t)`. PEFT's `linear` with squared weights is the same thing.

    Raises:
        LsatError: when ranks, scales or modules differ.
    """
    first = _same_modules(adapters, weights)
    if any(a.rank != first.rank or a.scale != first.scale for a in adapters):
        raise LsatError("factor_arithmetic: the adapters differ in rank or scale; use delta_arithmetic")
    state = {
        name: torch.stack([w * a.state[name] for a, w in zip(adapters, weights, strict=True)]).sum(0)
        for name in first.state
    }
    return Adapter(state, first.rank, first.alpha)


def peft_linear(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Combine as PEFT's `add_weighted_adapter(combination_type="linear")` does since 0.10.

    A and B are each summed with coefficients sqrt(w * scale), a negative sign on A only: own terms are weighted by w as
    in delta arithmetic, and cross terms by sqrt(w_i w_j) come on top. Neither LSAT-TA nor exact.

    Raises:
        LsatError: when ranks or modules differ.
    """
    first = _same_modules(adapters, weights)
    if any(a.rank != first.rank for a in adapters):
        raise LsatError("peft_linear: the adapters differ in rank; use delta_arithmetic")
    state = {}
    for name in first.state:
        total = torch.zeros_like(first.state[name])
        for adapter, weight in zip(adapters, weights, strict=True):
            sign = math.copysign(1.0, weight) if ".lora_A." in name else 1.0
            total += sign * math.sqrt(abs(weight) * adapter.scale) * adapter.state[name]
        state[name] = total
    return Adapter(state, first.rank, float(first.rank))


def delta_arithmetic(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Add the weighted updates exactly: ranks are concatenated (`cat`), there are no cross terms.

    The result has scale 1; weights and scales are folded into B.
    """
    first = _same_modules(adapters, weights)
    return _concatenate(adapters, [list(weights) for _ in first.modules()])


def learned_delta(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Add the updates with a weight of its own for every adapter and module.

    Args:
        adapters: N of them.
        weights: N * M numbers, adapter by adapter and within one in the order of `Adapter.modules()`; they come from
            `coefficients.fit_coefficients`.

    Raises:
        LsatError: when there are not N * M.
    """
    first = _same_modules(adapters)
    modules = first.modules()
    if len(weights) != len(adapters) * len(modules):
        raise LsatError(
            f"learned-delta: {len(weights)} weights for {len(adapters)} adapters of {len(modules)} modules; "
            "one is needed for every adapter and module"
        )
    table = [[weights[n * len(modules) + m] for n in range(len(adapters))] for m in range(len(modules))]
    return _concatenate(adapters, table)


@dataclass(frozen=True)
class Svd:
    """Truncate the exact sum of the updates to a rank; the best approximation of that rank in Frobenius norm.

    Our own: PEFT's svd family has scaled twice in some releases (methods.md 7.3).
    """

    rank: int | None = None
    """Rank of the result; None: the largest among the adapters', so that it costs what one of them costs."""

    def __call__(self, adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
        """Return the merged adapter, of scale 1."""
        whole = delta_arithmetic(adapters, weights)
        rank = min(self.rank or max(a.rank for a in adapters), whole.rank)
        return _from_factors({m: product_svd(*whole.pair(m), rank) for m in whole.modules()}, rank)


@dataclass(frozen=True)
class Ties:
    """TIES (Yadav 2023) on the updates, not on A and B apart: trim, elect a sign, average the entries that agree.

    Each update is trimmed per module to its largest entries. Signs are elected, and entries averaged, under the
    weights, so that weights (1, 0) give the first (trimmed) update; with equal weights this is PEFT's `ties` at
    weights of 1. The dense result is truncated by SVD.
    """

    density: float = 0.5
    """Share of the entries that trimming keeps."""
    rank: int | None = None
    """Rank of the result; None: the sum of the adapters' ranks, the cost of delta arithmetic."""

    def __call__(self, adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
        """Return the merged adapter, of scale 1."""

        def combine(deltas: list[torch.Tensor]) -> torch.Tensor:
            trimmed = torch.stack([trim(d, self.density) for d in deltas])
            weight = torch.tensor(weights, dtype=trimmed.dtype).view(-1, 1, 1)
            elected = (weight * trimmed).sum(0).sign()
            agree = (trimmed.sign() == elected) & (trimmed != 0)
            total = (weight * trimmed * agree).sum(0)
            mass = (weight * agree).sum(0)
            return torch.where(mass > 0, total / mass.clamp(min=1e-12), 0.0) * sum(weights)

        return _dense(adapters, weights, combine, self.rank)


@dataclass(frozen=True)
class Dare:
    """DARE (Yu 2024): drop entries of each update at random, rescale the rest by 1 / density, add.

    The mask depends on the seed and the place only, never on the weights, so a grid of weights sees one mask. The
    dense result is truncated by SVD.
    """

    density: float = 0.5
    """Probability that an entry stays."""
    seed: int = 0
    """Seed of the masks; another seed is another merge."""
    rank: int | None = None
    """Rank of the result; None: the sum of the adapters' ranks."""

    def __call__(self, adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
        """Return the merged adapter, of scale 1."""
        generator = torch.Generator().manual_seed(self.seed)

        def combine(deltas: list[torch.Tensor]) -> torch.Tensor:
            kept = [d * (torch.rand(d.shape, generator=generator) < self.density) / self.density for d in deltas]
            return _weighted(kept, weights)

        return _dense(adapters, weights, combine, self.rank)


@dataclass(frozen=True)
class MagnitudePrune:
    """Keep the largest entries of each update, add, truncate by SVD."""

    density: float = 0.5
    """Share of the entries that is kept."""
    rank: int | None = None
    """Rank of the result; None: the sum of the adapters' ranks."""

    def __call__(self, adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
        """Return the merged adapter, of scale 1."""
        return _dense(adapters, weights, lambda ds: _weighted([trim(d, self.density) for d in ds], weights), self.rank)


def trim(delta: torch.Tensor, density: float) -> torch.Tensor:
    """Return the matrix with only its `density` largest entries by magnitude."""
    if density >= 1:
        return delta
    from peft.utils.merge_utils import magnitude_based_pruning

    return magnitude_based_pruning(delta, density)


def _weighted(deltas: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    return torch.stack([w * d for d, w in zip(deltas, weights, strict=True)]).sum(0)


def _concatenate(adapters: Sequence[Adapter], weights: Sequence[Sequence[float]]) -> Adapter:
    """Stack A and B of all adapters; `weights[m][n]` is for module m and adapter n."""
    state = {}
    for module, row in zip(adapters[0].modules(), weights, strict=True):
        pairs = [a.pair(module) for a in adapters]
        state[f"{module}.lora_A.weight"] = torch.cat([a for a, _ in pairs], dim=0)
        state[f"{module}.lora_B.weight"] = torch.cat(
            [w * x.scale * b for (_, b), w, x in zip(pairs, row, adapters, strict=True)], dim=1
        )
    rank = sum(a.rank for a in adapters)
    return Adapter(state, rank, float(rank))


def _dense(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    combine: Callable[[list[torch.Tensor]], torch.Tensor],
    rank: int | None,
) -> Adapter:
    """Combine the updates [out, in] of every module, in the order of the names, and truncate what comes out."""
    first = _same_modules(adapters, weights)
    rank = rank or sum(a.rank for a in adapters)
    return _from_factors(
        {m: truncated_svd(combine([a.delta(m) for a in adapters]), rank) for m in first.modules()}, rank
    )


def _from_factors(factors: dict[str, tuple[torch.Tensor, torch.Tensor]], rank: int) -> Adapter:
    """Return the adapter of scale 1 with the given (A, B) of every module."""
    state = {}
    for module, (a, b) in factors.items():
        state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"] = a, b
    return Adapter(state, rank, float(rank))


def _same_modules(adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> Adapter:
    if not adapters or (weights is not None and len(adapters) != len(weights)):
        raise LsatError(f"merge: {len(adapters)} adapters but {len(weights or ())} weights")
    first = adapters[0]
    for other in adapters[1:]:
        if other.state.keys() != first.state.keys():
            raise LsatError("merge: the adapters change different modules; train them with the same lora.targets")
    return first


PARAMETER_MERGES: dict[str, Merge] = {
    "factor-arithmetic": factor_arithmetic,
    "delta-arithmetic": delta_arithmetic,
    "peft-linear": peft_linear,
    "svd": Svd(),
    "ties": Ties(),
    "dare": Dare(),
    "magnitude-prune": MagnitudePrune(),
    "learned-delta": learned_delta,
}
"""Merges by the name that models and strategies use. Another density or rank is another name: a line here."""
