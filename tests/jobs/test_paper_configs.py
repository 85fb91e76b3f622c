"""The shipped configs of the paper's two logs, on synthetic logs of the same layout and size, with the nano backbone.

Cut in length: of the 20 periods the first is the long-term history and the last alone is tested, one epoch.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lsat_ray import config as configs
from lsat_ray import data
from lsat_ray.data.periods import cut

ROOT = Path(__file__).resolve().parent.parent.parent
CUT = [
    "backbone.path=nano", "backbone.dtype=float32", "backbone.device=cpu",
    "backbone.nano={hidden: 32, heads: 2, vocabulary: 2000, rows: 4000, epochs: 0.5}",
    "recipe.epochs=1", "recipe.cadence=own", "recipe.patience=10",
    "engine.gpus=0", "engine.micro_batches=1", "serve.gpus=0",
    "replay.long_periods=1", "replay.first_test=20", "strategies=[short-term, long-term, lsat-en, lsat-ta]",
]  # fmt: skip

BOOKS = 900_000
"""Reviews of the written Amazon log: what its sample of users and its popular titles leave of the real one."""

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(3600)]


def events(users: int, items: int, count: int, start: int, end: int) -> dict[str, np.ndarray]:
    """Return events of Zipf-like items and unequal users, ratings that both decide, in a time span."""
    rng = np.random.default_rng(0)
    share = rng.pareto(1.2, users) + 0.3
    user = rng.choice(users, count, p=share / share.sum())
    user[: 20 * users] = np.repeat(np.arange(users), 20)[:count]
    popularity = 1.0 / (np.arange(items) + 20)
    item = rng.choice(items, count, p=popularity / popularity.sum())
    taste, quality = rng.normal(0, 0.6, users), rng.normal(0, 0.8, items)
    stars = np.clip(np.round(3.5 + taste[user] + quality[item] + rng.normal(0, 0.8, count)), 1, 5).astype(int)
    return {"user": user, "item": item, "stars": stars, "time": rng.integers(start, end, count)}


def movielens_1m(folder: Path) -> Path:
    """Write 1,000,209 ratings of 6,040 users and 3,706 films as `::` files in ISO-8859-1."""
    found = events(6040, 3706, 1_000_209, 956_703_932, 1_046_454_590)
    columns = (found["user"] + 1, found["item"] + 1, found["stars"], found["time"])
    frame = pd.DataFrame(dict(enumerate(columns)))
    frame.to_csv(folder / "part", sep=":", header=False, index=False)
    (folder / "ratings.dat").write_text((folder / "part").read_text().replace(":", "::"))
    lines = [f"{i + 1}::Caf\u00e9 No. {i}, The ({1930 + i % 70})::Drama\n" for i in range(3706)]
    (folder / "movies.dat").write_text("".join(lines), encoding="iso-8859-1")
    return folder


def amazon_books(folder: Path) -> Path:
    """Write reviews as the 2018 files have them, as many as leave the paper's 328,000 rows or so after the filters."""
    found = events(40_000, 12_680, BOOKS, 1_325_376_000, 1_538_352_000)
    with gzip.open(folder / "Books_5.json.gz", "wt", compresslevel=1) as file:
        for at in range(0, BOOKS, 200_000):
            rows = zip(*(found[k][at : at + 200_000].tolist() for k in ("user", "item", "stars", "time")), strict=True)
            file.writelines(
                f'{{"overall": {s}.0, "verified": true, "reviewerID": "A{u}", "asin": "{i:010d}", '
                f'"unixReviewTime": {t}, "reviewText": "x"}}\n'
                for u, i, s, t in rows
            )
    with gzip.open(folder / "meta_Books.json.gz", "wt", compresslevel=1) as file:
        file.writelines(f'{{"asin": "{i:010d}", "title": "Book {i}: A \\"Quoted\\" Tale"}}\n' for i in range(12_680))
    return folder


@pytest.mark.parametrize(
    ("config", "variable", "write", "more", "port"),
    [
        ("ml1m_llama7b", "ML1M", movielens_1m, [], 18541),
        # The written log stands for what the 20 % sample of users leaves.
        ("amazon_book_llama7b", "AMAZON", amazon_books, ["data.amazon.sample_users=1.0"], 18542),
    ],
)
def test_a_paper_config_runs_on_a_log_of_its_size(
    config: str,
    variable: str,
    write: object,
    more: list[str],
    port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = tmp_path / "log"
    log.mkdir()
    monkeypatch.setenv(variable, str(write(log)))  # type: ignore[operator]
    file = ROOT / "jobs" / "configs" / f"{config}.yaml"
    sets = [*CUT, *more, f"serve.port={port}"]
    experiment = configs.load(file, sets)
    periods = cut(data.load(experiment.data), experiment.data, experiment.periods)
    assert periods.count == 20
    rows = np.diff(periods.borders)
    if config == "ml1m_llama7b":
        assert (rows == 10_000).all()
    else:
        assert 10_000 < rows.mean() < 25_000
    command = [sys.executable, "jobs/stream_replay.py", "--config", str(file), "--runs-dir", str(tmp_path)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command += [part for s in sets for part in ("--set", s)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=4500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    metrics = pd.read_parquet(tmp_path / config / "metrics.parquet")
    assert set(metrics["period"]) == {20}
    assert {"short-term", "long-term", "lsat-en(1)", "lsat-ta(1)", "frozen"} <= set(metrics["strategy"])
    assert metrics["rows"].eq(rows[-1]).all()
