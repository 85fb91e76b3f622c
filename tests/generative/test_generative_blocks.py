"""Reader, splits and groups; the published counts where the real blocks are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsat_ray.errors import LsatError
from lsat_ray.generative import blocks as blocks_module
from lsat_ray.generative import synthetic
from lsat_ray.generative.blocks import Blocks, build, check, read, write

CODES = np.array([[0, 1], [0, 2], [1, 0], [1, 0]], dtype=np.int16)


def small() -> Blocks:
    events = {
        "x": [(0, 0), (1, 0), (2, 0), (3, 1), (0, 1), (1, 1)],
        "y": [(2, 0), (1, 0), (0, 0), (3, 0), (1, 2), (2, 2), (0, 2)],
        "z": [(1, 1), (2, 1)],
    }
    return build(["i0", "i1", "i2", "i3"], CODES, events)


def test_a_log_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    log = synthetic.generate(users=40, seed=3)
    write(log, tmp_path)
    again = read(tmp_path)
    for u, name in enumerate(again.users):
        ours, theirs = again.user == u, log.user == log.users.index(name)
        assert np.array_equal(again.item[ours], log.item[theirs])
        assert np.array_equal(again.block[ours], log.block[theirs])
    assert np.array_equal(again.codes, log.codes)
    assert read(tmp_path).fingerprint == again.fingerprint


def test_leave_two_out_by_hand() -> None:
    log = small()  # rows: x 0..5, y 6..12, z 13..14
    assert log.rows(1, "train").tolist() == [0, 6, 7]
    assert log.rows(1, "validation").tolist() == [1, 8]
    assert log.rows(1, "test").tolist() == [2, 9]
    assert log.rows(2, "train").tolist() == [3], "z has two events in block 1: too few to leave two out"
    assert log.tests(3, "leave-two-out").tolist() == [12]


def test_next_period_by_hand() -> None:
    log = small()
    assert log.rows(1, "train", "next-period").tolist() == [0, 1, 6, 7, 8]
    assert log.rows(1, "validation", "next-period").tolist() == [2, 9]
    assert log.tests(1, "next-period").tolist() == [3, 4, 5, 13, 14]
    with pytest.raises(LsatError, match="no period 4"):
        log.tests(3, "next-period")


def test_groups_are_new_dormant_and_active() -> None:
    log = small()
    assert log.groups(np.array([2, 3, 5, 10, 12, 14])).tolist() == [
        "new", "active", "active", "dormant", "dormant", "new",
    ]  # fmt: skip


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), split=st.sampled_from(["leave-two-out", "next-period"]))
def test_parts_are_disjoint_and_ordered_in_time(seed: int, split: blocks_module.Split) -> None:
    log = synthetic.generate(users=30, seed=seed)
    for period in range(1, log.count):
        train, validation = (log.rows(period, part, split) for part in ("train", "validation"))
        test = log.tests(period, split)
        assert not set(train) & set(validation) and not set(test) & {*train, *validation}
        newest = {u: r for r, u in zip(train, log.user[train], strict=True)}
        assert all(r > newest.get(u, -1) for r, u in zip(validation, log.user[validation], strict=True))
        assert (log.block[test] >= log.block[train].max()).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "block_1.json").unlink(), "block_0.json, block_1.json"),
        (lambda f: (f / "semantic_ids.json").unlink(), "does not exist"),
        (lambda f: (f / "block_0.json").write_text("{"), "not JSON"),
        (lambda f: (f / "semantic_ids.json").write_text('{"0": ["<b_1>"]}'), "export the codes again"),
        (
            lambda f: (f / "block_1.json").write_text(
                json.dumps({"new": {"previous_block": ["0"], "current_block": ["1"]}})
            ),
            "previous_block is not what",
        ),
        (
            lambda f: (f / "block_0.json").write_text(
                json.dumps({"new": {"previous_block": [], "current_block": ["nothing"]}})
            ),
            "has no semantic ID",
        ),
    ],
)
def test_a_broken_folder_is_one_line(tmp_path: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    write(synthetic.generate(users=20, blocks=3), tmp_path)
    spoil(tmp_path)
    with pytest.raises(LsatError, match=message):
        read(tmp_path)


@pytest.mark.data
@pytest.mark.skipif("LSAT_RAY_DATA" not in os.environ, reason="LSAT_RAY_DATA does not point at real logs")
@pytest.mark.parametrize("name", ["video_games", "cds"])
def test_published_blocks_have_the_published_counts(name: str) -> None:
    log = read(Path(os.environ["LSAT_RAY_DATA"]) / "amazon-blocks" / name)
    check(log, name)
    fewer = Blocks(log.users, log.items, log.codes, log.user[:-1], log.item[:-1], log.block[:-1])
    with pytest.raises(LsatError, match=r"interactions|users"):
        check(fewer, name)
