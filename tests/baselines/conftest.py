"""Small streams with a planted signal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lsat_ray.data.periods import Periods
from lsat_ray.data.windows import Samples

Plant = Callable[..., Periods]
ROWS, USERS, ITEMS, COLD, HISTORY = 1500, 30, 40, 400, 10


def _draw(
    rng: np.random.Generator,
    rows: int,
    items: np.ndarray,
    label: Callable[..., np.ndarray],
    history_likes: float | None,
) -> dict[str, np.ndarray]:
    user = rng.integers(0, USERS, rows)
    item = rng.choice(items, rows)
    history = rng.integers(0, ITEMS, (rows, HISTORY))
    share = rng.random(rows) if history_likes is None else np.full(rows, history_likes)
    liked = rng.random((rows, HISTORY)) < share[:, None]
    y = label(rng, user, item, history, liked)
    return {"user": user, "item": item, "label": y, "history_item": history, "history_label": liked}


@pytest.fixture(scope="session")
def plant() -> Plant:
    """Return a function that makes periods whose labels come from `label(rng, user, item, history, liked)`.

    `cold` gives the last period items that no earlier row holds; titles are then drawn from `title(item)`.
    """

    def make(
        label: Callable[..., np.ndarray],
        cold: bool = False,
        title: Callable[[int], str] = lambda i: f"Item {i} (1995)",
        history_likes: float | None = 0.5,
        periods: int = 2,
        rows: int = ROWS,
        seed: int = 0,
    ) -> Periods:
        rng = np.random.default_rng(seed)
        parts = []
        for t in range(periods):
            new = cold and t == periods - 1
            items = np.arange(ITEMS, ITEMS + COLD) if new else np.arange(ITEMS)
            parts.append(_draw(rng, rows, items, label, history_likes))
        columns = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        n = rows * periods
        time = np.arange(n, dtype=np.int64) * 3600 + 800_000_000
        samples = Samples(
            row=np.arange(n, dtype=np.int64),
            user=columns["user"].astype(np.int32),
            item=columns["item"].astype(np.int32),
            label=columns["label"].astype(np.uint8),
            timestamp=time,
            history_item=columns["history_item"].astype(np.int32),
            history_label=columns["history_label"].astype(np.uint8),
            history_timestamp=time[:, None] - np.arange(HISTORY, 0, -1)[None] * 60,
        )
        borders = tuple(range(0, n + 1, rows))
        return Periods(
            samples, tuple(title(i) for i in range(ITEMS + COLD)), borders, 0.1, f"{label.__name__}{cold}{seed}{n}"
        )

    return make
