"""What `/v1/rank` orders when it is sent no candidates: the titles that the operator listed, most popular first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lsat_ray.errors import LsatError
from lsat_ray.serving.schemas import MAX_TITLE


@dataclass(frozen=True)
class Catalogue:
    """Titles, and how many of them a ranking scores."""

    titles: tuple[str, ...] = ()
    """Most popular first."""
    shortlist: int = 100

    def candidates(self, history: Collection[str]) -> list[int]:
        """Return the places of the first titles that the history does not hold: popularity is the pre-filter."""
        seen = set(history)
        return list(islice((i for i, title in enumerate(self.titles) if title not in seen), self.shortlist))


def read(path: str | None, shortlist: int) -> Catalogue:
    """Read a text file with one title per line; empty lines and titles that stood before are left out.

    Raises:
        LsatError: when it cannot be read, holds nothing, or a title is too long to be asked for.
    """
    if path is None:
        return Catalogue()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LsatError(
            f"serve.catalogue: {path} cannot be read ({error}); give a text file, one title per line"
        ) from error
    titles = dict.fromkeys(line.strip() for line in lines)
    titles.pop("", None)
    if not titles:
        raise LsatError(f"serve.catalogue: {path} holds no title; give one per line, or null")
    for title in titles:
        if len(title) > MAX_TITLE:
            raise LsatError(f"serve.catalogue: {path}: {title[:40]!r} has {len(title)} characters; at most {MAX_TITLE}")
    return Catalogue(tuple(titles), shortlist)
