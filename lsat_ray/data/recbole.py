"""RecBole's atomic files: `.inter` and `.item`, tab-separated, with a typed header (`user_id:token rating:float`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from lsat_ray.data import tables
from lsat_ray.data.interactions import Interactions
from lsat_ray.errors import LsatError
from lsat_ray.files import write_atomic

TYPES: dict[str, pa.DataType] = {
    "token": pa.string(),
    "token_seq": pa.string(),
    "float": pa.float64(),
    "float_seq": pa.string(),
}
"""RecBole's field types as they are read."""


def read(path: Path, positive_above: float) -> Interactions:
    """Read a RecBole dataset: a folder with one `.inter` and one `.item` file, or the `.inter` file itself.

    `rating:float` above `positive_above` is a like; without it `label:float` (0 or 1) is taken as it is. The title is
    the first text field of `.item` that is called title or name, or ends so.

    Raises:
        LsatError: naming file, line or field and the remedy.
    """
    inter = _inter_file(path)
    fields = _fields(inter, ("user_id", "item_id", "timestamp"))
    value = next((f for f in ("rating", "label") if f in fields), None)
    if value is None:
        raise LsatError(
            f"{inter} line 1: neither `rating:float` nor `label:float` among {list(fields)}; add one of them"
        )
    types = {"user_id": pa.string(), "item_id": pa.string(), value: pa.float64(), "timestamp": pa.float64()}
    table = tables.read_delimited(inter, "\t", {fields[f]: t for f, t in types.items()})
    rating, stamp = table[fields[value]].to_numpy(), table[fields["timestamp"]].to_numpy()
    tables.require(
        inter, np.isfinite(stamp), lambda row: f"timestamp {stamp[row]} is no time; mend or drop the row", True
    )
    good = np.isin(rating, (0, 1)) if value == "label" else np.isfinite(rating)
    wanted = "0 or 1" if value == "label" else "a finite number"
    tables.require(inter, good, lambda row: f"{value} {rating[row]:g} is not {wanted}; mend or drop the row", True)

    user, user_ids = tables.dense(table[fields["user_id"]])
    item, item_ids = tables.dense(table[fields["item_id"]])
    item_file = tables.existing(inter.with_suffix(".item"), "it holds the titles; put it beside the .inter file")
    return Interactions(
        user=user,
        item=item,
        label=(rating > (0.5 if value == "label" else positive_above)).astype(np.uint8),
        timestamp=np.floor(stamp).astype(np.int64),
        user_ids=np.array(user_ids),
        item_ids=np.array(item_ids),
        titles=tables.titles_for(inter, item, item_ids, _titles(item_file), item_file, True),
        rating=rating if value == "rating" else None,
    )


def write(log: Interactions, folder: Path, name: str) -> None:
    """Write `name.inter` (user_id, item_id, label, timestamp) and `name.item` (item_id, title) into `folder`.

    Tabs and line breaks in titles become spaces: the format has no quotes.
    """
    users, items = log.user_ids[log.user], log.item_ids[log.item]
    rows = zip(users.tolist(), items.tolist(), log.label.tolist(), log.timestamp.tolist(), strict=True)
    inter = "".join(f"{u}\t{i}\t{y}\t{t}\n" for u, i, y, t in rows)
    write_atomic(folder / f"{name}.inter", "user_id:token\titem_id:token\tlabel:float\ttimestamp:float\n" + inter)
    pairs = zip(log.item_ids.tolist(), log.titles, strict=True)
    item = "".join(f"{i}\t{' '.join(title.split())}\n" for i, title in pairs)
    write_atomic(folder / f"{name}.item", "item_id:token\ttitle:token_seq\n" + item)


def _inter_file(path: Path) -> Path:
    if not path.is_dir():
        return tables.existing(path, "give a folder with .inter and .item files, or the .inter file, as data.path")
    found = sorted(path.glob("*.inter"))
    if len(found) != 1:
        raise LsatError(f"data.path: {path}: {len(found)} .inter files in this folder; name the one meant as data.path")
    return tables.existing(found[0], "write the atomic files again")


def _fields(path: Path, wanted: tuple[str, ...]) -> dict[str, str]:
    """Return field name -> its header cell (`rating` -> `rating:float`)."""
    fields = {}
    for cell in tables.header_of(path, "\t"):
        name, _, kind = cell.partition(":")
        if kind not in TYPES:
            raise LsatError(f"{path} line 1: field `{cell}` has no RecBole type; write it as name:{'|'.join(TYPES)}")
        fields[name] = cell
    for name in wanted:
        if name not in fields:
            raise LsatError(f"{path} line 1: field `{name}` is missing among {list(fields)}; add it to the file")
    return fields


def _titles(path: Path) -> dict[str, str]:
    fields = _fields(path, ("item_id",))
    title = next((f for f in fields if f.endswith(("title", "name"))), None)
    if title is None:
        raise LsatError(f"{path} line 1: no title among {list(fields)}; add a field `title:token_seq`")
    table = tables.read_delimited(path, "\t", {fields["item_id"]: pa.string(), fields[title]: pa.string()})
    return dict(zip(table[0].to_pylist(), table[1].to_pylist(), strict=True))
