"""Set our MF beside well-kept peers on the same split of a MovieLens log: is it worse than they are beyond noise?

    python benchmarks/peer_mf.py --log $LSAT_RAY_DATA/ml-latest-small

Peers: scikit-learn's logistic regression on one-hot user and item (a model of biases), truncated SVD of its residuals,
and `implicit`'s alternating least squares where it is installed (it is no dependency of the project). Ours sees what
they see, user and item ids, so side features and the history vector are off; as shipped, it stands beside. Its dropout
and weight decay were chosen on tested periods 13 and 19, the peers' settings are their defaults.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import LogisticRegression

from lsat_ray.baselines import classical
from lsat_ray.baselines.spec import ClassicalSpec
from lsat_ray.baselines.training import sizes_of, training_rows
from lsat_ray.config import ClassicalRecipe, DataConfig, Experiment, PeriodsConfig
from lsat_ray.data.movielens import read
from lsat_ray.data.periods import Periods, Slice, cut
from lsat_ray.data.windows import Samples
from lsat_ray.evaluation.metrics import auc
from lsat_ray.strategies import STRATEGIES, Setting

IDENTITY = ClassicalRecipe(side="none", history_vector=False, epochs=30, patience=3, dropout=0.5, weight_decay=1e-3)
WIDE = "ours, ids only, epoch selected on V_1..V_t"


def one_hot(rows: Samples, users: int, items: int) -> sparse.csr_matrix:
    """Return the indicator matrix of user and item, [N, users + items]."""
    n = np.arange(len(rows))
    columns = np.r_[rows.user, rows.item + users]
    return sparse.csr_matrix((np.ones(2 * len(rows)), (np.r_[n, n], columns)), shape=(len(rows), users + items))


def biases(train: Samples, test: Samples, users: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's probabilities of the training and test rows from user and item alone."""
    model = LogisticRegression(C=1.0, max_iter=300).fit(one_hot(train, users, items), train.label)
    return tuple(model.predict_proba(one_hot(r, users, items))[:, 1] for r in (train, test))  # type: ignore[return-value]


def svd(train: Samples, test: Samples, users: int, items: int, rank: int = 8) -> np.ndarray:
    """Return biases plus a rank-`rank` truncated SVD of what they leave over, [N]."""
    fitted, base = biases(train, test, users, items)
    residual = sparse.csr_matrix((train.label - fitted, (train.user, train.item)), shape=(users, items))
    model = TruncatedSVD(rank, random_state=0)
    left = model.fit_transform(residual)
    return base + np.einsum("nr,rn->n", left[test.user], model.components_[:, test.item])


def als(train: Samples, test: Samples, users: int, items: int) -> np.ndarray | None:
    """Return implicit's ALS scores, dislikes as negative confidence, [N]; None where it is not installed."""
    try:
        from implicit.cpu.als import AlternatingLeastSquares  # type: ignore[import-not-found,import-untyped]
    except ImportError:
        return None
    value = np.where(train.label == 1, 1.0, -1.0).astype(np.float32)
    matrix = sparse.csr_matrix((value, (train.user, train.item)), shape=(users, items))
    model = AlternatingLeastSquares(factors=64, regularization=0.1, iterations=15, random_state=0, num_threads=1)
    model.fit(matrix, show_progress=False)
    return np.einsum("nr,nr->n", np.asarray(model.user_factors)[test.user], np.asarray(model.item_factors)[test.item])


def ours(periods: Periods, period: int, seeds: list[int], recipe: ClassicalRecipe, wide: bool = False) -> np.ndarray:
    """Return our MF's scores of D_{period + 1}, one row a seed.

    `wide` selects the epoch on V_1..V_t, which are then not trained on, instead of V_t: 200 rows of a few users, often
    none of them known, choose an epoch almost blindly for a model that has nothing but ids.
    """
    specs = [full_retraining(periods, period, s, recipe) for s in seeds]
    if wide:
        past = range(1, period + 1)
        train, held = (tuple(Slice(t, part) for t in past) for part in ("train", "validation"))  # type: ignore[arg-type]
        specs = [replace(s, train=train, validation=held) for s in specs]
    test = periods.rows(period + 1)
    return np.stack([classical.score(s, classical.fit(s, periods).state, periods, test) for s in specs])


def full_retraining(periods: Periods, period: int, seed: int, recipe: ClassicalRecipe) -> ClassicalSpec:
    """Return MF trained afresh on everything up to a period."""
    setting = Setting("", periods.fingerprint, Experiment(baselines=recipe), seed)
    return STRATEGIES["mf/full-retraining"](setting).plan(period).adapters[0]  # type: ignore[union-attr, return-value]


def one_period(periods: Periods, period: int, seeds: list[int]) -> dict[str, Any]:
    """Return the AUC of every model on D_{period + 1}, over all rows and over those of known users and items."""
    spec = full_retraining(periods, period, 0, IDENTITY)
    train, test = training_rows(spec, periods), periods.rows(period + 1)
    sizes = sizes_of(spec, periods)
    known = np.isin(test.user, train.user) & np.isin(test.item, train.item)
    found: dict[str, np.ndarray | None] = {
        "sklearn logistic one-hot": biases(train, test, sizes.users, sizes.items)[1],
        "sklearn biases + SVD": svd(train, test, sizes.users, sizes.items),
        "implicit ALS": als(train, test, sizes.users, sizes.items),
        "ours, ids only": ours(periods, period, seeds, IDENTITY),
        WIDE: ours(periods, period, seeds, IDENTITY, wide=True),
        "ours, as shipped": ours(periods, period, seeds, ClassicalRecipe()),
    }
    out: dict[str, Any] = {"period": period + 1, "rows": len(test), "known_rows": int(known.sum())}
    for name, scores in found.items():
        if scores is not None:
            runs = np.atleast_2d(scores)
            out[name] = float(np.mean([auc(test.label, s) for s in runs]))
            out[f"{name} (known)"] = float(np.mean([auc(test.label[known], s[known]) for s in runs]))
    return out


def compare(records: list[dict[str, Any]], suffix: str) -> dict[str, Any]:
    """Return means, and our paired differences to every peer with their standard errors over periods."""
    names = [n for n in records[0] if n.endswith(" (known)") == bool(suffix) and ("sklearn" in n or "implicit" in n)]
    out: dict[str, Any] = {"ours, as shipped": float(np.nanmean([r["ours, as shipped" + suffix] for r in records]))}
    for own in ("ours, ids only", WIDE):
        mine = np.array([r[own + suffix] for r in records])
        out[own] = {"auc": float(np.nanmean(mine))}
        for name in names:
            gap = mine - np.array([r[name] for r in records])
            gap = gap[~np.isnan(gap)]
            error = float(gap.std(ddof=1) / np.sqrt(len(gap)))
            out[own][f"minus {name.removesuffix(suffix)}"] = {
                "gap": float(gap.mean()),
                "standard_error": error,
                "not_worse_beyond_2_se": bool(gap.mean() + 2 * error >= 0),
            }
    for name in names:
        out[name.removesuffix(suffix)] = float(np.nanmean([r[name] for r in records]))
    return out


def main() -> None:
    """Compare on tested periods 11..20 and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, help="MovieLens folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--periods", type=int, nargs="+", default=list(range(10, 20)), help="update periods t")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peer_mf.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = DataConfig(format="movielens", path=str(args.log), keep_last=40_000, positive_above=3.5)
    periods = cut(read(args.log, data.positive_above), data, PeriodsConfig(number=20))
    records = []
    for t in args.periods:
        records.append(one_period(periods, t, args.seeds))
        print({k: round(v, 4) for k, v in records[-1].items()}, flush=True)
    peer = "implicit ALS" in records[0]
    result = {
        "log": "ml-latest-small, last 40,000 samples, 20 periods; full retraining, tested on the next period",
        "seeds": args.seeds,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "sklearn": sklearn.__version__},
        "implicit": "ran" if peer else "skipped: not installed (pip install implicit)",
        "all rows": compare(records, ""),
        "known users and items": compare(records, " (known)"),
        "periods": records,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result[k] for k in ("all rows", "known users and items")}, indent=1))


if __name__ == "__main__":
    main()
