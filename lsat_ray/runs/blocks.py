"""The next-item task as a run: folder, lock, ledger, tables and report (methods.md 5g)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone.load import settle
from lsat_ray.config import Experiment
from lsat_ray.files import write_atomic
from lsat_ray.generative.blocks import Blocks
from lsat_ray.generative.metrics import FIELDS
from lsat_ray.generative.study import Bench, Measured, by_group, load_blocks, paired, summarise, weights
from lsat_ray.report import blocks as page
from lsat_ray.runs.backend import Backend, Say
from lsat_ray.runs.folder import RunFolder
from lsat_ray.runs.ledger import Ledger
from lsat_ray.runs.tasks import Context, Find, Fit, Task
from lsat_ray.runs.timings import Timings
from lsat_ray.strategies.graph import closure

STORES = ("adapters", "networks", "searches")
"""Content-addressed stores in the run's folder; what is in one is not done again."""
TESTS = "tests.parquet"
"""One line per test, row, seed and number of beams (`generative.study.Measured.values`)."""


@dataclass(frozen=True)
class CheckedBlocks:
    """A config of this task whose log was read and whose rows are known."""

    config: Experiment
    blocks: Blocks

    def line(self) -> str:
        """Return one line about what was read."""
        counts = self.blocks.counts()
        split = self.config.generative.split
        return (
            f"{sum(counts.interactions):,} interactions of {len(self.blocks.users):,} users with {counts.items:,} "
            f"items in {self.blocks.count} blocks; {len(self.config.strategies)} rows, {len(self.config.seeds)} seeds, "
            f"{split}"
        )


def check(config: Experiment) -> CheckedBlocks:
    """Read the log and look at the rows; nothing is written.

    Raises:
        LsatError: on bad input.
    """
    return CheckedBlocks(config, load_blocks(config))


def one_process(config: Experiment) -> Experiment:
    """Return the config with this task's engine: a fit is one process of plain torch, sessions run side by side."""
    return config.model_copy(update={"engine": config.engine.model_copy(update={"kind": "torch", "workers": 1})})


def study(config: Experiment, runs_dir: Path, backend: Backend, say: Say, checked: CheckedBlocks | None = None) -> Path:
    """Measure the configured rows on every tested block, one seed after the other; the same call goes on where it was.

    The folder holds `tests.parquet` (every test of every row), `table.csv`, `groups.csv` (new, dormant and active
    users), `paired.csv` (differences from `generative.reference`), where rows have a penalty `penalties.csv` (its ratio
    to the loss), one ledger record per (seed, row, block, stage), and a report.

    Returns:
        The run's folder.

    Raises:
        LsatError: on bad input, before anything is written.
    """
    config = settle(config)
    folder = RunFolder(runs_dir, config)
    folder.check()
    backend.check(serve=False, again=folder.begun)
    checked = checked or check(config)
    say(checked.line())
    folder.open()
    try:
        _mend(folder.path, say)
        ledger, timings = Ledger(folder.path / "ledger.jsonl"), Timings(folder.path / "timings.jsonl")
        say(f"RESUMED after {len(ledger)} records" if len(ledger) else f"FRESH run in {folder.path}")
        try:
            with timings.span("start-up"):
                backend.begin(folder.path, say)
                backbone = weights(config, checked.blocks, Path(runs_dir).resolve() / "backbones", say)
                backend.open(Context(config, str(backbone), str(folder.adapters), ()), None, serve=False)
                bench = Bench(config, checked.blocks, folder.path, backbone, say)
            values: list[pd.DataFrame] = []
            for seed in config.seeds:  # after each a whole table, of fewer seeds
                values += [m.values for m in _measured(bench, backend, seed, ledger, timings, say)]
                _write(folder.path, pd.concat(values, ignore_index=True), config)
                if len(ratios := _penalties(bench, ledger)):
                    write_atomic(folder.path / "penalties.csv", ratios.to_csv(index=False, float_format="%.3g"))
        finally:
            backend.close()
    finally:
        folder.close()
    return folder.path


def _made(bench: Bench, backend: Backend, seed: int, t: int, names: list[str], timings: Timings) -> None:
    """Let the backend train and search what the rows need after period t, and the stores lack."""

    def do(tasks: list[Task]) -> None:
        present = {d for store in (bench.adapters, bench.networks) for d in store.digests()}
        for key, result in (backend.do(tasks, present) if tasks else {}).items():
            for stage, seconds in result["seconds"].items():
                timings.add(stage, result["start"], seconds, t, key)

    tried = [s for n in names for s in bench.tried(n, seed, t)]  # a grid's lambda is known after these
    do([Fit(s) for s in closure(tried) if not bench.has(s)])
    specs = {n: bench.specs(n, seed, t) for n in names}
    do([Fit(s) for s in closure(s for each in specs.values() for s in each) if not bench.has(s)])
    finds = [
        Find(bench.wanted(n, seed, t, beams)[0], n, seed, t, beams, tuple(s.digest for s in specs[n]))
        for n in names
        for beams in bench.beams(n)
    ]
    do([f for f in finds if f.key not in bench.searches])


def _measured(bench: Bench, backend: Backend, seed: int, ledger: Ledger, timings: Timings, say: Say) -> list[Measured]:
    """Train and measure a seed block by block, and record each stage."""
    out = []
    names = [n for n in bench.config.strategies if seed in bench.seeds(n)]
    for t in bench.periods():
        _made(bench, backend, seed, t, names, timings)
        for name in names:
            models = bench.models(name, seed, t)
            digest = hashlib.sha256(json.dumps(models, sort_keys=True).encode()).hexdigest()
            rule = bench.rule(name, seed, t)
            ledger.append(seed, name, t, "train", digest=digest, models=models, rule=rule)
            for beams in bench.beams(name):
                measured = bench.measure(name, seed, t, beams)
                means = {k: float(measured.values[k].mean()) for k in FIELDS}
                block, tests = int(measured.values["block"].iloc[0]), len(measured.values)
                facts = {"block": block, "beams": beams, "tests": tests, "weights": measured.weights, **means}
                ledger.append(seed, name, t, f"score-{beams}", digest=measured.digest, **facts)
                say(f"block {block} seed {seed} {name}: NDCG@10 {means['ndcg10']:.4f} ({beams} beams)")
                out.append(measured)
    return out


def _penalties(bench: Bench, ledger: Ledger) -> pd.DataFrame:
    """Return the mean ratio of penalty to loss over the validations of each adapter that was trained with a penalty.

    Columns strategy, rule (with lambda), seed, block (that it was trained on), penalty_ratio. A penalty that is
    computed in the forward pass (`output-kl`) is measured on the validation rows.
    """
    rows = []
    for name in bench.config.strategies:
        for seed in bench.seeds(name):
            for t in bench.periods():
                record = ledger.get(seed, name, t, "train")
                for model in record["models"] if record else []:
                    if "penalty_ratio" in model:
                        rows.append((name, record["rule"], seed, t - 1, model["penalty_ratio"]))  # type: ignore[index]
    return pd.DataFrame(rows, columns=["strategy", "rule", "seed", "block", "penalty_ratio"])


def _write(folder: Path, values: pd.DataFrame, config: Experiment) -> None:
    write_atomic(folder / TESTS, values)
    tables = {
        "table": summarise(values),
        "groups": by_group(values),
        "paired": paired(values, config.generative.reference),
    }
    for name, frame in tables.items():
        write_atomic(folder / f"{name}.csv", frame.to_csv(index=False, float_format="%.6f"))
    page.write(folder, tables, config.generative.reference)


def _mend(folder: Path, say: Say) -> None:
    """Put damaged models and searches aside, so that they are made again."""
    for store in (AdapterStore(folder / name) for name in STORES):
        for digest in store.digests():
            if not store.usable(digest):
                say(store.quarantine(digest))
