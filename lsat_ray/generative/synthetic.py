"""A small log of the published shape with known truth, for tests and first runs."""

from __future__ import annotations

import numpy as np

from lsat_ray.generative.blocks import Blocks, build


def generate(
    users: int = 200,
    items: int = 120,
    blocks: int = 5,
    size: int = 8,
    levels: int = 4,
    drift: float = 0.5,
    seed: int = 0,
) -> Blocks:
    """Return blocks in which the next item follows from the last one, by a rule that drifts from block to block.

    Items lie on a ring. Their first codes are their place on it (a prefix tree of neighbours, as an RQ-VAE makes of
    similar texts), so codes carry what there is to learn. A user walks the ring by the step of the block, with noise.
    A block holds the share that PESO's have: 60 % of the users in block 0, the rest in equal parts, a fifth of them
    with a history.

    Args:
        users: over all blocks.
        items: at most `size ** levels`.
        blocks: number of them.
        size: codes of a level.
        levels: codes of an item.
        drift: probability that the step changes from one block to the next.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    place = np.arange(items) * size**levels // items
    codes = np.stack([place // size ** (levels - 1 - m) % size for m in range(levels)], axis=1).astype(np.int16)
    events: dict[str, list[tuple[int, int]]] = {}
    step = 1
    for block in range(blocks):
        if block and rng.random() < drift:
            step = int(rng.integers(2, 6))
        share = round(users * 0.6) if block == 0 else max(3, round(users * 0.4 / (blocks - 1)))
        known = list(events)
        for number in range(share):
            back = block > 0 and number < share // 5
            name = known[int(rng.integers(len(known)))] if back else f"u{len(events)}"
            own = events.setdefault(name, [])
            if own and own[-1][1] == block:
                continue
            at = own[-1][0] if own else int(rng.integers(items))
            for _ in range(int(rng.integers(5, 9))):
                at = int(rng.integers(items)) if rng.random() < 0.1 else (at + step) % items
                own.append((at, block))
    return build([str(i) for i in range(items)], codes, events)
