"""Finished searches, opened with Ray Tune's own API."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lsat_ray.distributed.cluster import connect, disconnect


def trials(root: Path) -> pd.DataFrame:
    """Return one row per trial of every experiment under `root`: experiment, strategy, coefficient, auc, log_loss.

    `Tuner.restore(path, trainable=trial).get_results()` gives the ordinary `ResultGrid` of each period.
    """
    here = connect()
    try:
        from ray import tune

        from lsat_ray.distributed.search import trial

        frames = []
        for path in sorted(root.glob("seed*-period*")):
            results = tune.Tuner.restore(str(path), trainable=trial).get_results()
            frame = results.get_dataframe()
            columns = {"config/candidate/strategy": "strategy", "config/candidate/coefficient": "coefficient"}
            found = frame.rename(columns=columns)[["strategy", "coefficient", "auc", "log_loss"]]
            frames.append(found.assign(experiment=path.name))
        return pd.concat(frames, ignore_index=True)
    finally:
        if here:
            disconnect()
