"""`current.json` and the adapters that it names: broken ones are taken out, the rest goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lsat_ray.adapters.store import WEIGHTS, AdapterStore
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.served import CURRENT, FROZEN, Served, heal, read_current, write_current

A, B = "a" * 64, "b" * 64


def published(run_dir: Path) -> AdapterStore:
    """Publish two adapters, and serve one model of each and one of both."""
    import numpy as np

    store = AdapterStore(run_dir / "adapters")
    scores = (np.arange(2), np.zeros(2, np.float32))
    for digest in (A, B):
        store.publish_state(digest, {}, {"x": torch.ones(3)}, {}, scores)
    models = (
        Model("first", 3, "single", (A,), (1.0,)),
        Model("second", 3, "single", (B,), (1.0,)),
        Model("both", 3, "output-ensemble", (A, B), (0.5, 0.5)),
    )
    write_current(run_dir, Served(7, models))
    return store


def test_nothing_is_changed_where_all_is_well(tmp_path: Path) -> None:
    assert heal(tmp_path, AdapterStore(tmp_path / "adapters")) == []
    assert read_current(tmp_path) is None
    store = published(tmp_path)
    before = (tmp_path / CURRENT).read_bytes()
    assert heal(tmp_path, store) == []
    assert (tmp_path / CURRENT).read_bytes() == before


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_models_of_a_broken_adapter_are_taken_out(tmp_path: Path, how: str) -> None:
    store = published(tmp_path)
    folder = store.path(A)
    if how == "gone":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    else:
        (folder / WEIGHTS).write_bytes(b"rot")
    lines = heal(tmp_path, store)
    assert len(lines) == 1 and A in lines[0]
    healed = read_current(tmp_path)
    assert healed is not None and healed.names == ["second"]
    assert healed.version != 7, "so that the run sees that its version is not served"
    assert A not in store and B in store
    assert heal(tmp_path, store) == []


def test_the_backbone_alone_is_served_when_no_model_is_left(tmp_path: Path) -> None:
    store = published(tmp_path)
    for digest in (A, B):
        (store.path(digest) / WEIGHTS).unlink()
    assert len(heal(tmp_path, store)) == 2
    assert read_current(tmp_path) == Served(0, (FROZEN,))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 3}', '{"version": 1, "models": []}'])
def test_a_broken_current_is_replaced(tmp_path: Path, text: str) -> None:
    store = published(tmp_path)
    (tmp_path / CURRENT).write_text(text)
    lines = heal(tmp_path, store)
    assert len(lines) == 1 and CURRENT in lines[0]
    assert read_current(tmp_path) == Served(0, (FROZEN,))
    assert store.usable(A)
