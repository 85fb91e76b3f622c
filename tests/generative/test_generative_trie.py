"""The trie knows exactly the items' prefixes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lsat_ray.generative.trie import Trie


@given(hnp.arrays(np.int16, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.integers(0, 3)))
def test_walking_down_gives_exactly_the_items(codes: np.ndarray) -> None:
    trie = Trie.build(codes)
    paths: dict[int, tuple[int, ...]] = {0: ()}
    for level in range(trie.levels):
        deeper: dict[int, tuple[int, ...]] = {}
        found = trie.children(level, torch.tensor(sorted(paths)))
        for row, node in enumerate(sorted(paths)):
            for child, code, real in zip(found.node[row], found.code[row], found.real[row], strict=True):
                if real:
                    assert int(child) not in deeper
                    deeper[int(child)] = (*paths[node], int(code))
        paths = deeper
    assert sorted(paths.values()) == sorted({tuple(map(int, row)) for row in codes})
    assert [paths[i] for i in range(len(trie))] == [tuple(map(int, row)) for row in trie.ids]
    assert (trie.ids[trie.leaf] == codes).all()
    members = trie.items()
    assert sorted(np.concatenate(members)) == list(range(len(codes)))
    assert all((trie.leaf[m] == leaf).all() for leaf, m in enumerate(members))
