"""Damage to text, bytes and trees, drawn by a seeded generator."""

from __future__ import annotations

import random
from typing import Any

PIECES = (
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\n",
        b"\r\n",
        b"\t",
        b'"',
        b"'",
        b"\\",
        b",",
        b"::",
        b":",
        b"{",
        b"}",
    ),
    *(b"[", b"]", b"- ", b"#", b"&a ", b"*a", b"!!python/object/apply:os.system ", b"<<: *a", b"|", b"---\n"),
    *(b"nan", b"NaN", b"inf", b"-inf", b"1e999", b"-1", b"0", b"99999999999999999999", b"1.5", b"true", b"null"),
    *(
        "é\u2028\U0001f3ac".encode(),
        b"a" * 5000,
        b"../../etc/passwd",
        b"$HOME",
        b"${",
        b"2001-02-30",
        b"0x1f",
        b"1_000",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 10**30, "", "x", "nan", "é" * 300, "\0"),
    *([], [[]], [None], {}, {"x": {}}, {"": 1}, ["a", 1, None], "../../x", "/etc/passwd", -(10**30), "1e999"),
)


def damage(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with one to three faults: a flipped bit, a lost, doubled, cut or foreign piece."""
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((1, 1, 2, 8, 64)))
        kind = chance.randrange(6)
        if kind == 0 and data[at:end]:
            data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[end:]
        elif kind == 2:
            data = data[:end] + data[at:]
        elif kind == 3:
            data = data[:at]
        else:
            data = data[:at] + chance.choice(PIECES) + data[end if kind == 4 else at :]
    return data


def twist(tree: Any, chance: random.Random) -> Any:
    """Return a tree with one node lost, renamed or replaced by something odd."""
    if isinstance(tree, dict) and tree and chance.random() < 0.85:
        key = chance.choice(list(tree))
        kind = chance.randrange(8)
        if kind == 0:
            return {k: v for k, v in tree.items() if k != key}
        if kind == 1:
            return {chance.choice(("", "x", "é", f"{key}x")) if k == key else k: v for k, v in tree.items()}
        return {**tree, key: twist(tree[key], chance)}
    if isinstance(tree, list) and tree and chance.random() < 0.7:
        at = chance.randrange(len(tree))
        return [*tree[:at], twist(tree[at], chance), *tree[at + chance.randint(0, 1) :]]
    return chance.choice(VALUES)
