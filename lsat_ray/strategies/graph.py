"""The graph of distinct models that strategies need over a run of periods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

from lsat_ray.strategies.base import Spec, Strategy


class Link(Protocol):
    """A spec of any model."""

    @property
    def digest(self) -> str:
        """Its name in the store."""

    def parents(self) -> tuple[Any, ...]:
        """Return the specs that it starts from."""


L = TypeVar("L", bound=Link)


def closure(specs: Iterable[L]) -> list[L]:
    """Return the specs and everything they start from, each digest once, parents before children."""
    order: dict[str, L] = {}
    stack = [(spec, False) for spec in reversed(list(specs))]
    while stack:  # no recursion: a chain is as long as the stream
        spec, parents_done = stack.pop()
        if spec.digest in order:
            continue
        if parents_done:
            order[spec.digest] = spec
        else:
            stack.append((spec, True))
            stack += [(parent, False) for parent in reversed(spec.parents())]
    return list(order.values())


def needed(strategies: Sequence[Strategy], periods: Iterable[int]) -> list[Spec]:
    """Return the distinct models that must be trained, in an order in which each one's parents come first.

    For the seven rows of Table 2 over periods 10 to 19 these are 39 (methods.md 10).

    Args:
        strategies: the rows.
        periods: the t after which a model is wanted.
    """
    plans = [plan for t in periods for s in strategies if (plan := s.plan(t)) is not None]
    return closure(spec for plan in plans for spec in plan.specs())
