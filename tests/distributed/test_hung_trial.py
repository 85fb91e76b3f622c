"""A trial whose process hangs: Tune ends the experiment in time, and it is begun again."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsat_ray.runs.search import Weighting, measure

LABEL = np.array([0, 1, 0, 1])
CANDIDATES = [Weighting("lsat-en", (w, 1 - w), np.array([0.1, 0.2, 0.8, 0.6 + w])) for w in (0.0, 0.5, 1.0)]


@pytest.mark.ray
@pytest.mark.timeout(540)
def test_a_trial_that_hangs_is_killed_and_the_experiment_begun_again(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run waited for it for ever."""
    from ray import tune

    from lsat_ray.distributed import search

    hung = tmp_path / "hung"

    def trial(config: dict[str, Any], table: Any) -> None:
        if not hung.exists():
            hung.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        reached = measure(LABEL, table["scores"][config["candidate"]["step"]])
        tune.report({"auc": reached.auc, "log_loss": reached.log_loss})

    monkeypatch.setattr(search, "trial", trial)
    monkeypatch.setattr(search, "BUDGET_S", 45.0)
    reached = [measure(LABEL, c.score) for c in CANDIDATES]
    search.keep("seed0-period02", CANDIDATES, LABEL, reached, tmp_path / "search", "log-loss")
    assert search.kept("seed0-period02", tmp_path / "search")
    assert hung.exists()
