"""Whether a run has anything left to do; looked at before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lsat_ray.backbone import nano
from lsat_ray.backbone.load import fingerprint, locate
from lsat_ray.report import TABLE
from lsat_ray.runs import derived, steps
from lsat_ray.runs.check import Checked
from lsat_ray.runs.folder import RunFolder
from lsat_ray.runs.ledger import Ledger
from lsat_ray.scoring.model import Model
from lsat_ray.strategies import Derived, make

LEAVES = {
    "replay": ("metrics.parquet", "timings.parquet", TABLE, "report.html"),
    "study": ("metrics.parquet", "timings.parquet", TABLE, "report.html", "trainings.csv", "table2.csv"),
}
"""Files that a run leaves at its end."""


def finished(checked: Checked, runs_dir: Path, order: Literal["replay", "study"]) -> Path | None:
    """Return the folder of a run under exactly this config whose every score is recorded under today's plans.

    Args:
        checked: the config and its log.
        runs_dir: where the run lies.
        order: what the run would do.
    """
    config, folder = checked.config, RunFolder(runs_dir, checked.config).path
    resolved = folder / "config.resolved.yaml"
    if not all((folder / name).is_file() for name in LEAVES[order]) or resolved.read_text() != config.to_yaml():
        return None
    weights = _weights(checked, Path(runs_dir))
    if weights is None:
        return None
    name, ledger = fingerprint(weights, config.backbone), Ledger(folder / "ledger.jsonl")
    for seed in config.seeds:
        strategies = make(checked.setting(name, seed))
        behind: list[list[Model]] = []
        for t in range(config.first_test, checked.periods.count + 1):
            behind.append([])
            for strategy in strategies:
                if (plan := strategy.plan(t - 1)) is None:
                    continue
                chosen = ledger.get(seed, strategy.name, t - 1, "search", plan.digest)
                if chosen is None:
                    return None
                behind[-1].append(steps.model(seed, strategy.name, t - 1, plan, tuple(chosen["weights"])))
            found = [(m.strategy, m.digest) for m in behind[-1]]
            found += [(s.name, derived.digest(s, behind)) for s in strategies if isinstance(s, Derived)]
            if any(ledger.get(seed, row, t, "score", digest) is None for row, digest in found):
                return None
    return folder


def _weights(checked: Checked, runs_dir: Path) -> Path | None:
    """Return the folder of the backbone, None where the nano one is not built yet."""
    config = checked.config
    if config.backbone.path != "nano":
        return locate(config.backbone)
    folder = nano.place(checked.periods, config.backbone.nano, config.prompt, runs_dir.resolve() / "backbones")
    return folder if (folder / "config.json").is_file() else None
