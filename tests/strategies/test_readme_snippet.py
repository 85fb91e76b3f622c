"""README shows how to add a strategy in at most 25 lines; this runs that very snippet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lsat_ray.adapters.merge import PARAMETER_MERGES
from lsat_ray.config import Experiment, ReplayConfig
from lsat_ray.strategies import STRATEGIES, Setting, make
from lsat_ray.strategies.graph import closure, needed

README = Path(__file__).parents[2] / "README.md"


def snippet(text: str) -> str | None:
    """Return the first python block after the heading, or None without the heading."""
    _, heading, after = text.partition("\n## Add a strategy")
    if not heading:
        return None
    block = re.search(r"^```python\n(.*?)^```", after.partition("\n## ")[0], re.DOTALL | re.MULTILINE)
    assert block, "README: no python block under `## Add a strategy`"
    return block.group(1)


def test_the_snippet_adds_a_strategy() -> None:
    code = snippet("\n" + README.read_text()) if README.is_file() else None
    if code is None:
        pytest.skip("README has no section `## Add a strategy` yet")
    assert len(code.rstrip().splitlines()) <= 25
    before = dict(STRATEGIES)
    space: dict[str, Any] = {"__name__": "readme"}
    try:
        exec(compile(code, str(README), "exec"), space)
        added = [n for n in STRATEGIES if n not in before]
        assert added, "the snippet does not register its strategy in STRATEGIES"
        config = Experiment(strategies=("lsat-en", *added), replay=ReplayConfig(long_periods=3))
        setting = Setting("backbone", "data", config, seed=0, samples=(100,) * 8)
        strategies = make(setting)
        for t in range(1, 8):
            for strategy in strategies[1:]:
                plan = strategy.plan(t)
                if plan is None:
                    continue
                assert plan.merge in {"single", "frozen", "output-ensemble", *PARAMETER_MERGES}
                assert all(len(w) == len(plan.adapters) for w in plan.grid)
                assert all(s.last_period <= t for s in closure(plan.specs()))
        assert needed(strategies, range(3, 8))
    finally:
        for name in set(STRATEGIES) - set(before):
            del STRATEGIES[name]
