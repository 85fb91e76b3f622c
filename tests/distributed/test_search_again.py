"""A kept search whose trial dies is begun again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsat_ray.distributed import search
from lsat_ray.errors import LsatError
from lsat_ray.runs.search import Reached


@pytest.mark.parametrize("deaths", [0, 2, 3])
def test_a_search_is_begun_again_and_in_the_end_says_why(
    deaths: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One SIGKILL of a trial ended the whole run."""
    begun: list[str] = []

    def fragile(name: str, *_: Any) -> list[Reached]:
        begun.append(name)
        if len(begun) <= deaths:
            raise LsatError("search: a trial failed (the actor died)")
        return [Reached(0.5, 0.7)]

    monkeypatch.setattr(search, "search", fragile)
    if deaths < search.TRIES:
        search.keep("seed0-period02", [], np.array([0, 1]), [Reached(0.5, 0.7)], tmp_path, "log-loss")
        assert search.kept("seed0-period02", tmp_path)
    else:
        with pytest.raises(LsatError, match="the actor died"):
            search.keep("seed0-period02", [], np.array([0, 1]), [Reached(0.5, 0.7)], tmp_path, "log-loss")
    assert len(begun) == min(deaths + 1, search.TRIES)
