"""A fabricated run folder: every file of the contract, and scores in which lsat-en(10) is truly better."""

import json

import numpy as np
import pandas as pd
import pytest

from lsat_ray.evaluation import metrics

NOISE = {
    "oracle": 0.0,
    "lsat-en(10)": 0.75,
    "lsat-en(full)": 0.85,
    "lsat-ta(10)": 0.9,
    "full-retraining": 0.95,
    "short-term": 1.0,
    "long-term": 1.0,
    "fine-tuning": 1.05,
    "mf/full-retraining": 1.4,
    "frozen": 2.0,
    "like-share+item-rate": 1.8,
    "item-rate": 2.4,
    "like-share": 2.6,
}
PLAIN = {"like-share+item-rate"}  # a sum, no probability
TRAINED = {
    "full-retraining": ["f{t}"],
    "fine-tuning": ["t{t}"],
    "short-term": ["s{t}"],
    "long-term": ["f10"],
    "lsat-en(10)": ["f10", "s{t}"],
    "lsat-en(full)": ["f{t}", "s{t}"],
    "lsat-ta(10)": ["f10", "s{t}"],
}
SEEDS = (0, 1)


def score_tables(rows=400, periods=range(11, 16)):
    """Yield strategy, seed, period and a frame row, user, item, label, score."""
    world = np.random.default_rng(3)
    for t in periods:
        user, item = world.integers(0, 60, rows), world.integers(0, 90, rows)
        signal = world.normal(size=rows)
        label = (signal + 0.8 * world.normal(size=rows) > -0.3).astype(np.uint8)
        for s, (strategy, noise) in enumerate(NOISE.items()):
            for seed in SEEDS:
                own = np.random.default_rng([t, s, seed])
                value = signal + noise * own.normal(size=rows)
                score = value if strategy in PLAIN else 1 / (1 + np.exp(-value))
                frame = pd.DataFrame({"row": np.arange(rows) + t * rows, "user": user, "item": item})
                yield strategy, seed, t, frame.assign(label=label, score=score)


def timings(periods=range(11, 16)):
    rows, clock = [(0, "start-up", "", 0.0, 14.0, np.nan), (0, "backbone", "", 14.0, 22.0, np.nan)], 36.0
    for t in periods:
        for subject, seconds in ((f"f{t - 1}", 4.0 + 0.5 * t), (f"s{t - 1}", 1.2), (f"t{t - 1}", 1.5)):
            rows.append((t, "train", subject, clock, seconds, 900.0))
            clock += seconds
        for stage, seconds in (("score", 2.5), ("search", 2.0), ("publish", 0.6), ("serve", 1.4), ("idle", 0.5)):
            rows.append((t, stage, "", clock, seconds, 400.0))
            clock += seconds
    return pd.DataFrame(rows, columns=["period", "stage", "subject", "start", "seconds", "targets"])


def coefficients(periods=range(10, 15)):
    rows = []
    for strategy, sharp in (("lsat-en(10)", 0.02), ("lsat-en(full)", 0.01), ("lsat-ta(10)", 0.05)):
        for seed in SEEDS:
            for t in periods:
                best = 0.4 + 0.1 * ((t + seed + round(100 * sharp)) % 4)
                grid = np.linspace(0, 1, 11)
                auc = 0.7 - sharp * (grid - best) ** 2
                rows += [
                    (seed, t, strategy, c, a, 1 - a, float(i == auc.argmax()))
                    for i, (c, a) in enumerate(zip(grid, auc, strict=True))
                ]
    return pd.DataFrame(rows, columns=["seed", "period", "strategy", "coefficient", "auc", "log_loss", "share"])


def manifests():
    """Adapters that were trained until patience ended it, but for the full retrainings."""
    rng, out = np.random.default_rng(5), []
    for t in range(10, 15):
        for kind, steps in (("f", 60), ("s", 12), ("t", 16)):
            spec = {"train": [[i, "train"] for i in (range(1, t + 1) if kind == "f" else (t,))], "init": None}
            spec["init"] = "t1" if kind == "t" else None
            history = [(k, 0.7 - k / 1000, 0.6 + 0.1 * k / steps + 0.01 * rng.normal()) for k in range(2, steps + 1, 2)]
            best = int(max(history, key=lambda h: h[2])[0])
            stopped = "budget" if kind == "f" and t > 12 else "patience"
            facts = {"steps": steps, "best_step": best, "stopped_by": stopped, "history": history}
            out.append({"digest": f"{kind}{t}", "spec": spec, "facts": facts})
    return out


def fabricate(path):
    """Write a whole run folder."""
    measured = []
    for strategy, seed, t, frame in score_tables():
        file = path / "scores" / strategy / f"seed{seed}" / f"period{t:02d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(file)
        values = metrics.summarise(frame["label"], frame["score"], frame["user"], strategy not in PLAIN)
        measured.append({"strategy": strategy, "period": t, "seed": seed} | values)
    pd.DataFrame(measured).to_parquet(path / "metrics.parquet")
    timings().to_parquet(path / "timings.parquet")
    (path / "search").mkdir()
    coefficients().to_parquet(path / "search" / "coefficients.parquet")
    for manifest in manifests():
        file = path / "adapters" / manifest["digest"] / "manifest.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(manifest))
    (path / "config.resolved.yaml").write_text("name: made-up\ndata:\n  path: <script>alert('titles')</script>\n")
    (path / "versions.json").write_text(json.dumps({"python": "3.11", "numpy": "2.4"}))
    ledger = [
        {"strategy": s, "period": t, "stage": "train", "adapters": [a.format(t=t) for a in adapters]}
        for t in range(10, 15)
        for s, adapters in TRAINED.items()
    ]
    (path / "ledger.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ledger) + '{"strategy": "cut o')
    return path


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A run folder with everything; do not write into it."""
    return fabricate(tmp_path_factory.mktemp("made-up"))


@pytest.fixture(scope="session")
def strategies():
    """The strategies of the made-up run."""
    return tuple(NOISE)
