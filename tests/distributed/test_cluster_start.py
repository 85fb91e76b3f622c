"""Starting a cluster on a busy machine: Ray itself gives its processes 30 seconds."""

from __future__ import annotations

from typing import Any

import pytest

from lsat_ray.distributed import cluster
from lsat_ray.errors import LsatError


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_a_start_that_takes_too_long_is_repeated_and_then_one_line(
    failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ended with a traceback."""
    import ray

    calls: list[str] = []

    def init(**_: Any) -> None:
        calls.append("init")
        if calls.count("init") <= failures:
            raise Exception("The current node timed out\n during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    if failures < cluster.STARTS:
        assert cluster.connect()
    else:
        with pytest.raises(LsatError, match=r"timed out during startup\..*same command goes on"):
            cluster.connect()
    assert calls.count("shutdown") == min(failures, cluster.STARTS)
