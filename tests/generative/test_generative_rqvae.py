"""The RQ-VAE: similar items share prefixes, collisions are repaired, codes go out in the published format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lsat_ray.errors import LsatError
from lsat_ray.generative.blocks import read_codes, write_codes
from lsat_ray.generative.rqvae import Shape, train

SHAPE = Shape(size=8, width=8, hidden=(32,), epochs=60, batch_size=64)
GROUPS = 6


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(GROUPS, 16))
    return np.repeat(centres, 30, axis=0) + 0.5 * rng.normal(size=(GROUPS * 30, 16))


def test_items_of_a_group_share_their_first_code(vectors: np.ndarray) -> None:
    torch.set_num_threads(1)
    first = train(vectors, SHAPE).codes(vectors)[:, 0]
    group = np.repeat(np.arange(GROUPS), 30)
    same, kin = first[:, None] == first, group[:, None] == group
    assert same[kin].mean() > 0.6 and same[~kin].mean() < 0.2


def test_training_lowers_the_reconstruction_error(vectors: np.ndarray) -> None:
    x = torch.from_numpy(vectors.astype(np.float32))
    errors = []
    for epochs in (0, 60):
        model = train(vectors, Shape(size=8, width=8, hidden=(32,), epochs=epochs, batch_size=64))
        with torch.no_grad():
            errors.append(float((model(x)[0] - x).square().mean()))
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.5 * vectors.var()


def test_repair_parts_items_that_collide(vectors: np.ndarray) -> None:
    model = train(vectors, SHAPE)
    repaired = len(np.unique(model.codes(vectors), axis=0))
    model.shape = replace(SHAPE, repairs=0)
    plain = model.codes(vectors)
    assert len(np.unique(plain, axis=0)) < repaired <= len(vectors)
    model.shape = SHAPE
    assert (model.codes(vectors)[:, :-1] == plain[:, :-1]).all(), "only the last code may change"


def test_the_same_arguments_give_the_same_codes_and_new_items_can_be_coded(vectors: np.ndarray) -> None:
    one, two = train(vectors, SHAPE), train(vectors, SHAPE)
    assert np.array_equal(one.codes(vectors), two.codes(vectors))
    new = one.codes(vectors[:3] + 0.01)
    assert new.shape == (3, 4) and new.min() >= 0 and new.max() < 8


def test_codes_go_out_in_the_published_format(vectors: np.ndarray, tmp_path: Path) -> None:
    codes = train(vectors, SHAPE).codes(vectors)
    items = [f"item {i}" for i in range(len(codes))]
    write_codes(tmp_path / "semantic_ids.json", items, codes)
    names, again = read_codes(tmp_path / "semantic_ids.json")
    assert list(names) == items and np.array_equal(again, codes)
    assert (tmp_path / "semantic_ids.json").read_text().startswith('{"item 0": ["<a_')


def test_fewer_items_than_codes() -> None:
    vectors = np.eye(3)
    codes = train(vectors, Shape(size=8, width=4, hidden=(8,), epochs=5)).codes(vectors)
    assert codes.shape == (3, 4)


def test_broken_vectors_are_one_line() -> None:
    with pytest.raises(LsatError, match="finite"):
        train(np.array([[np.nan, 1.0]]))
