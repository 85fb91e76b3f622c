"""The trie of real items: which codes may follow which, and the items at its leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lsat_ray.errors import LsatError


class Children(NamedTuple):
    """The nodes one level below some nodes, padded to the widest."""

    node: torch.Tensor
    """int64 [..., K], numbers of the children within their level."""
    code: torch.Tensor
    """int64 [..., K], the code that leads to each."""
    real: torch.Tensor
    """bool [..., K], False for padding."""


@dataclass(frozen=True)
class Trie:
    """Distinct prefixes of items' codes, level by level, in lexicographic order; a leaf is one semantic ID.

    Nodes of level m are numbered from 0; the children of a node are consecutive nodes of level m + 1, so a level is
    two arrays and the whole takes memory linear in the number of items.
    """

    start: tuple[torch.Tensor, ...]
    """For each inner level, int64 [nodes + 1]: where each node's children begin in the next level."""
    code: tuple[torch.Tensor, ...]
    """For levels 1..M, int64 [nodes]: the code that leads to each node."""
    leaf: np.ndarray
    """int64 [I], the leaf of every item."""
    ids: np.ndarray
    """int16 [leaves, M], the codes of every leaf."""

    @classmethod
    def build(cls, codes: np.ndarray) -> Trie:
        """Build from items' codes [I, M].

        Raises:
            LsatError: when there is no item.
        """
        if not len(codes):
            raise LsatError("trie: there is no item; give at least one row of codes")
        ids, leaf = np.unique(codes, axis=0, return_inverse=True)
        starts, names = [], []
        above = np.zeros(len(ids), dtype=np.int64)
        for level in range(codes.shape[1]):
            new = np.r_[True, (ids[1:, : level + 1] != ids[:-1, : level + 1]).any(axis=1)]
            parent = above[new]
            starts.append(torch.from_numpy(np.searchsorted(parent, np.arange(above[-1] + 2))))
            names.append(torch.from_numpy(ids[new, level].astype(np.int64)))
            above = np.cumsum(new) - 1
        return cls(tuple(starts), tuple(names), leaf.reshape(-1), ids)

    def __len__(self) -> int:
        """Return the number of leaves."""
        return len(self.ids)

    @property
    def levels(self) -> int:
        """M, codes of an item."""
        return len(self.code)

    def children(self, level: int, node: torch.Tensor) -> Children:
        """Return the children of nodes of a level (0: the root), node int64 [...]."""
        start = self.start[level].to(node.device)
        begin, count = start[node], start[node + 1] - start[node]
        place = torch.arange(int(count.max()), device=node.device)
        real = place < count[..., None]
        child = torch.where(real, begin[..., None] + place, 0)
        return Children(child, self.code[level].to(node.device)[child], real)

    def items(self) -> list[np.ndarray]:
        """Return the items of every leaf, in catalogue order."""
        order = np.argsort(self.leaf, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.leaf, minlength=len(self)))[:-1])
