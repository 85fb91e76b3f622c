"""Show what a chain of fine-tunings makes of rounding: the same replay with one worker and with two.

    python benchmarks/rounding.py --json benchmarks/results/rounding.json

Two workers add the same gradients up in another order. For every setting of the recipe the row `fine-tuning` of the
default stream is replayed twice over the local backend, and the adapters are compared link by link.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from benchmarks.measuring import machine, matmul_peak
from lsat_ray.config import load
from lsat_ray.runs.folder import versions
from lsat_ray.runs.local import LocalBackend
from lsat_ray.runs.replay import replay

SETTINGS: dict[str, tuple[str, ...]] = {
    "lr .01": ("recipe.lr=0.01",),
    "lr .01, 7 steps of warm-up": ("recipe.lr=0.01", "recipe.warmup=7"),
    "lr .003": ("recipe.lr=0.003",),
}


def links(run: Path) -> dict[int, tuple[dict[str, torch.Tensor], int]]:
    """Return weights and best step of every adapter of the chain, by its newest validation period."""
    found = {}
    for manifest in (run / "adapters").glob("*/manifest.json"):
        tree = json.loads(manifest.read_text())
        period = max(period for period, _ in tree["spec"]["validation"])
        found[period] = load_file(manifest.with_name("adapter_model.safetensors")), int(tree["facts"]["best_step"])
    return dict(sorted(found.items()))


def measure(config: Path, sets: tuple[str, ...], root: Path) -> dict[str, object]:
    """Replay with one worker and with two and compare."""
    auc, chains = [], []
    for workers in (1, 2):
        words = ("engine.backend=local", f"engine.workers={workers}", "strategies=[fine-tuning]", *sets)
        experiment = load(config, words, f"workers{workers}-{'-'.join(sets)}".replace("=", "_").replace(".", "_"))
        run = replay(experiment, root, LocalBackend(experiment), print)
        metrics = pd.read_parquet(run / "metrics.parquet")
        auc.append(float(metrics[metrics["strategy"] == "fine-tuning"]["auc"].mean()))
        chains.append(links(run))
    one, two = chains
    return {
        "mean_auc": auc,
        "largest_difference_by_link": [
            max(float((v - two[t][0][k]).abs().max()) for k, v in weights.items()) for t, (weights, _) in one.items()
        ],
        "links_with_another_step": sum(step != two[t][1] for t, (_, step) in one.items()),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/synthetic.yaml"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        settings = {name: measure(options.config, sets, Path(root)) for name, sets in SETTINGS.items()}
    host = machine(torch.device("cpu"), 1, matmul_peak(torch.device("cpu"), 512, 0.2))
    tree = {"settings": settings, "commit": versions().get("commit"), "machine": host}
    options.json.write_text(json.dumps(tree, indent=2) + "\n")
    print(json.dumps(settings, indent=2))


if __name__ == "__main__":
    main()
