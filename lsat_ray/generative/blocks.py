"""The blocks and semantic IDs that PESO's authors publish, as one table of events, and its two splits."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lsat_ray.errors import LsatError

Split = Literal["leave-two-out", "next-period"]
"""`leave-two-out`: a user's last event of a block is the test, the one before it validation (PESO, methods.md 5d).
`next-period`: a user's last event of a block is validation, every event of the next block is a test (LSAT)."""
Part = Literal["train", "validation", "test", "all"]
CODE = re.compile(r"<([a-z])_(\d+)>")


class Counts(NamedTuple):
    """What a log must contain to be the published one."""

    users: tuple[int, ...]
    """Of each block."""
    interactions: tuple[int, ...]
    train: tuple[int, ...]
    """Training targets of each block under leave-two-out."""
    items: int
    colliding: int
    """Items that share their codes with another item."""


PUBLISHED = {
    "video_games": Counts(
        (12447, 1035, 1091, 1949, 1791),
        (91273, 7491, 7492, 14646, 13271),
        (66379, 5421, 5310, 10748, 9689),
        25935,
        402,
    ),
    "cds": Counts(
        (8494, 1013, 866, 1078, 1074), (81355, 8686, 7488, 9468, 9421), (64367, 6660, 5756, 7312, 7273), 39191, 1229
    ),
}
"""Counts by name of the log (methods.md 5d)."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """All events, sorted by user and then in time; a target is a row, its history the user's rows before it."""

    users: tuple[str, ...]
    items: tuple[str, ...]
    codes: np.ndarray
    """int16 [I, M], the M codes of every item, each counted from 0 within its level."""
    user: np.ndarray
    """int32 [N]."""
    item: np.ndarray
    """int32 [N]."""
    block: np.ndarray
    """int16 [N], 0 for the first block; non-decreasing within a user."""

    @property
    def count(self) -> int:
        """Number of blocks; block b is period b + 1."""
        return int(self.block.max()) + 1

    @property
    def size(self) -> int:
        """Codes of a level."""
        return int(self.codes.max()) + 1

    @cached_property
    def begin(self) -> np.ndarray:
        """Return each row's first row of the same user, int64 [N]."""
        return np.searchsorted(self.user, self.user, side="left")

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of events and codes."""
        digest = hashlib.sha256(repr((self.users, self.items)).encode())
        for column in (self.codes, self.user, self.item, self.block):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    @cached_property
    def _group(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each row's number of rows of the same user and block, and how many of them come after it."""
        key = self.user.astype(np.int64) * self.count + self.block
        first, last = np.searchsorted(key, key, side="left"), np.searchsorted(key, key, side="right")
        return last - first, last - 1 - np.arange(len(key))

    def rows(self, period: int, part: Part, split: Split = "leave-two-out") -> np.ndarray:
        """Return the target rows of a part of D_period, int64, sorted.

        Args:
            period: 1-based; block `period - 1`.
            part: `all`: every event. Users with fewer than three events in a block are left out by `leave-two-out`.
            split: what the parts mean; the tests of `next-period` are those of the model of the period before.

        Raises:
            LsatError: when there is no such period.
        """
        if not 1 <= period <= self.count:
            raise LsatError(f"blocks: there is no period {period}; they run from 1 to {self.count}")
        here = self.block == period - 1
        size, after = self._group
        if part == "all" or (part == "test" and split == "next-period"):
            return np.flatnonzero(here)
        if split == "next-period":
            return np.flatnonzero(here & (size >= 2) & ((after == 0) == (part == "validation")))
        left = {"train": after >= 2, "validation": after == 1, "test": after == 0}[part]
        return np.flatnonzero(here & (size >= 3) & left)

    def tests(self, period: int, split: Split) -> np.ndarray:
        """Return the targets that the model of a period is tested on."""
        return self.rows(period + (split == "next-period"), "test", split)

    def select(self, slices: Iterable[tuple[int, Any]], split: Split) -> np.ndarray:
        """Return the target rows of several (period, part), sorted, each once."""
        found = [self.rows(period, part, split) for period, part in slices]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def groups(self, rows: np.ndarray) -> np.ndarray:
        """Return for each target what its user was before the target's block: `new`, `dormant` or `active`.

        New users have no earlier event, dormant ones none in the block just before (PESO's analysis).
        """
        size, after = self._group
        before = rows - (size[rows] - 1 - after[rows]) - 1  # the user's newest row before the block
        known = before >= self.begin[rows]
        recent = known & (self.block[np.maximum(before, 0)] == self.block[rows] - 1)
        return np.where(~known, "new", np.where(recent, "active", "dormant"))

    def counts(self) -> Counts:
        """Return what `PUBLISHED` holds, of this log."""
        blocks = range(self.count)
        shared = np.unique(self.codes, axis=0, return_counts=True)[1]
        return Counts(
            tuple(len(np.unique(self.user[self.block == b])) for b in blocks),
            tuple(int((self.block == b).sum()) for b in blocks),
            tuple(len(self.rows(b + 1, "train")) for b in blocks),
            len(self.items),
            int(shared[shared > 1].sum()),
        )


def check(blocks: Blocks, name: str) -> None:
    """Compare a log with the published counts of its name.

    Raises:
        LsatError: naming what differs, or that the name is unknown.
    """
    if name not in PUBLISHED:
        raise LsatError(f"blocks: no counts are published for {name!r}; known: {', '.join(PUBLISHED)}")
    for field, ours, theirs in zip(Counts._fields, blocks.counts(), PUBLISHED[name], strict=True):
        if ours != theirs:
            raise LsatError(f"blocks: {name} has {field} {ours}, published are {theirs}; fetch the log again")


def read(folder: str | Path) -> Blocks:
    """Read `semantic_ids.json` and `block_0.json`, `block_1.json`, ... of a folder.

    Raises:
        LsatError: when a file is missing or not of the published form, or a history is not what earlier blocks hold.
    """
    folder = Path(folder).expanduser()
    names, codes = read_codes(folder / "semantic_ids.json")
    number = {name: i for i, name in enumerate(names)}
    events: dict[str, list[tuple[int, int]]] = {}
    paths = sorted(folder.glob("block_*.json"), key=lambda p: (len(p.name), p.name))
    if [p.name for p in paths] != [f"block_{b}.json" for b in range(len(paths))] or not paths:
        raise LsatError(f"data.path: {folder} has no block_0.json, block_1.json, ...; give a folder of blocks")
    for block, path in enumerate(paths):
        for user, entry in _json(path).items():
            known = events.setdefault(user, [])
            try:
                before, now = ([number[i] for i in entry[k]] for k in ("previous_block", "current_block"))
            except (KeyError, TypeError) as error:
                raise LsatError(
                    f"{path}: user {user}: {error} is no key or has no semantic ID; fetch it again"
                ) from error
            if before != [item for item, _ in known]:
                raise LsatError(f"{path}: user {user}: previous_block is not what the earlier blocks hold; fetch again")
            known += [(item, block) for item in now]
    return build(names, codes, {u: e for u, e in events.items() if e})


def read_codes(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the items of a `semantic_ids.json` and their codes, int16 [I, M].

    Raises:
        LsatError: when a code is not of the form `<a_12>`, its letter not that of its level, or lengths differ.
    """
    tree = _json(path)
    table = []
    for item, written in tree.items():
        found = [CODE.fullmatch(code) for code in written]
        if any(m is None or ord(m[1]) - ord("a") != level for level, m in enumerate(found)):
            raise LsatError(f"{path}: item {item}: {written} is not <a_i> <b_j> ...; export the codes again")
        table.append([int(m[2]) for m in found if m])
    if not table or len({len(row) for row in table}) != 1 or not table[0]:
        raise LsatError(f"{path}: items have no codes, or not the same number of them; export the codes again")
    return tuple(tree), np.array(table, dtype=np.int16)


def code_name(level: int, code: int) -> str:
    """Return the published name of a code: `<a_12>`."""
    return f"<{chr(ord('a') + level)}_{code}>"


def write_codes(path: Path, items: Sequence[str], codes: np.ndarray) -> None:
    """Write items and codes [I, M] in the published format."""
    tree = {item: [code_name(m, int(c)) for m, c in enumerate(row)] for item, row in zip(items, codes, strict=True)}
    path.write_text(json.dumps(tree))


def write(blocks: Blocks, folder: Path) -> None:
    """Write a log in the published format."""
    folder.mkdir(parents=True, exist_ok=True)
    write_codes(folder / "semantic_ids.json", blocks.items, blocks.codes)
    for b in range(blocks.count):
        tree = {}
        for user in np.unique(blocks.user[blocks.block == b]):
            own = np.flatnonzero(blocks.user == user)
            parts = {"previous_block": blocks.block[own] < b, "current_block": blocks.block[own] == b}
            tree[blocks.users[user]] = {k: [blocks.items[i] for i in blocks.item[own[v]]] for k, v in parts.items()}
        (folder / f"block_{b}.json").write_text(json.dumps(tree))


def build(items: Sequence[str], codes: np.ndarray, events: Mapping[str, Sequence[tuple[int, int]]]) -> Blocks:
    """Return the table of events given as user -> [(item number, block), ...] in time order."""
    users = tuple(events)
    flat = [(u, item, block) for u, name in enumerate(users) for item, block in events[name]]
    if not flat:
        raise LsatError("blocks: the log has no event; give a folder of blocks")
    user, item, block = (np.array(column) for column in zip(*flat, strict=True))
    return Blocks(users, tuple(items), codes, user.astype(np.int32), item.astype(np.int32), block.astype(np.int16))


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise LsatError(f"data.path: {path} does not exist; give a folder with blocks and semantic IDs") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LsatError(f"{path}: not JSON; fetch it again") from error
    if not isinstance(tree, dict):
        raise LsatError(f"{path}: expected an object, found {type(tree).__name__}; fetch it again")
    return tree
