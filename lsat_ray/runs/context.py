"""One experiment in its folder: everything that the steps of a pipeline work on, opened and closed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone import nano
from lsat_ray.backbone.load import fingerprint, locate, settle
from lsat_ray.baselines.naive import PERIOD_RATE, item_rate_by_period, naive_scores, oracle_scores
from lsat_ray.config import Experiment
from lsat_ray.data.interactions import write_ids
from lsat_ray.data.periods import Periods
from lsat_ray.files import sweep_drafts
from lsat_ray.runs.backend import Backend, Say
from lsat_ray.runs.check import Checked, check
from lsat_ray.runs.folder import RunFolder
from lsat_ray.runs.ledger import Ledger
from lsat_ray.runs.tasks import Context
from lsat_ray.runs.timings import Timings
from lsat_ray.scoring.served import heal
from lsat_ray.strategies import Plan, Strategy, make


@dataclass(frozen=True)
class Run:
    """What the steps share; nothing in it changes but what ledger, timings and store append."""

    checked: Checked
    folder: RunFolder
    ledger: Ledger
    timings: Timings
    store: AdapterStore
    backend: Backend
    say: Say
    strategies: Mapping[int, tuple[Strategy, ...]]
    """By seed."""
    fixed: Mapping[str, np.ndarray]
    """Scores of all samples that need no model: the naive rows and, where the truth is known, the oracles."""

    @property
    def config(self) -> Experiment:
        """The experiment."""
        return self.checked.config

    @property
    def periods(self) -> Periods:
        """The samples, cut."""
        return self.checked.periods

    @property
    def tested(self) -> range:
        """Periods that are tested on."""
        return range(self.config.first_test, self.periods.count + 1)

    def plans(self, seed: int, t: int) -> dict[str, Plan]:
        """Return the plans of all rows for period t, by name."""
        return {s.name: p for s in self.strategies[seed] if (p := s.plan(t)) is not None}


@contextmanager
def opened(
    config: Experiment, runs_dir: Path, backend: Backend, say: Say, serve: bool, checked: Checked | None = None
) -> Iterator[Run]:
    """Check the config, open its folder, build the backbone while the backend starts, and let all go at the end.

    Args:
        config: the experiment.
        runs_dir: where runs and built backbones lie.
        backend: does the work.
        say: prints a line.
        serve: start the endpoint.
        checked: what `check` returned, when the caller has checked.

    Raises:
        LsatError: on bad input, before anything is written.
    """
    began = time.time()
    config = settle(config)
    folder = RunFolder(runs_dir, config)
    folder.check()
    backend.check(serve, folder.begun)
    checked = checked or check(config)
    say(checked.summary.line())
    for warning in checked.summary.warnings:
        say(f"warning: {warning}")
    folder.open()
    try:
        sweep_drafts(folder.path)
        ledger, timings = Ledger(folder.path / "ledger.jsonl"), Timings(folder.path / "timings.jsonl")
        store = AdapterStore(folder.adapters)
        write_ids(checked.log, folder.path)
        for line in [*_mend(store), *heal(folder.path, store)]:
            say(line)
        _announce(folder, ledger, store, say)
        try:
            with ThreadPoolExecutor(1) as beside:
                started = time.time()
                building = beside.submit(_backbone, checked, Path(runs_dir).resolve(), say)
                backend.begin(folder.path, say)
                weights = building.result()
                timings.add("backbone", started, time.time() - started)
            context = Context(config, str(weights), str(folder.adapters), checked.periods.titles)
            backend.open(context, checked.periods, serve)
            name = fingerprint(weights, config.backbone)
            strategies = {seed: tuple(make(checked.setting(name, seed))) for seed in config.seeds}
            timings.add("start-up", began, time.time() - began)
            yield Run(checked, folder, ledger, timings, store, backend, say, strategies, _fixed(checked.periods))
        finally:
            with timings.span("start-up", subject="shut-down"):
                backend.close()
    finally:
        folder.close()


def _mend(store: AdapterStore) -> list[str]:
    """Put damaged models aside, so that they are trained again; return a line for each."""
    return [store.quarantine(digest) for digest in store.digests() if not store.usable(digest)]


def _announce(folder: RunFolder, ledger: Ledger, store: AdapterStore, say: Say) -> None:
    kept = len(store.digests())
    if last := ledger.records()[-1:]:
        where = f"seed {last[0]['seed']}, period {last[0]['period']}, after stage {last[0]['stage']}"
        say(f"RESUMED {where} ({len(ledger)} records, {kept} models kept)")
    elif kept:
        say(f"RESUMED before the first record ({kept} models kept) in {folder.path}")
    else:
        say(f"FRESH run in {folder.path}")


def _backbone(checked: Checked, runs_dir: Path, say: Say) -> Path:
    """Return the folder of the backbone; the nano one is built where it is not there yet."""
    config = checked.config
    if config.backbone.path != "nano":
        return locate(config.backbone)
    root, threads = runs_dir / "backbones", config.engine.threads
    return nano.build(checked.periods, config.backbone.nano, config.prompt, root, threads, say)


def _fixed(periods: Periods) -> dict[str, np.ndarray]:
    naive = naive_scores(periods.samples, periods.borders[0])
    return {**naive, PERIOD_RATE: item_rate_by_period(periods), **oracle_scores(periods.samples)}
