"""A replay whose workers hold a shard of the backbone each ends as one process does, up to rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_backends import run


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2700)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_replay_under_zero_3_reaches_what_one_process_reaches(tmp_path: Path, workers: int) -> None:
    sets = (f"engine.workers={workers}", "engine.kind=deepspeed", "engine.zero=3", "serve.port=18537")
    split = pd.read_parquet(run(tmp_path, "smoke", "split", *sets) / "metrics.parquet")
    whole = pd.read_parquet(run(tmp_path, "smoke", "whole", "engine.backend=local") / "metrics.parquet")
    keys = ["strategy", "period", "seed"]
    assert split[keys].equals(whole[keys])
    np.testing.assert_allclose(split["log_loss"], whole["log_loss"], atol=2e-3)
