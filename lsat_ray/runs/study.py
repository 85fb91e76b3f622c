"""The study: a finished log in back-fill. Every distinct model once, as many at a time as there are sessions."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd

from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.config import Experiment
from lsat_ray.data.periods import Slice
from lsat_ray.evaluation import leakage
from lsat_ray.files import write_atomic
from lsat_ray.runs import cross, derived, results, steps, tables
from lsat_ray.runs.backend import Backend, Say
from lsat_ray.runs.check import Checked
from lsat_ray.runs.context import Run, opened
from lsat_ray.strategies import Derived, Spec, Strategy
from lsat_ray.strategies.graph import closure


def study(config: Experiment, runs_dir: Path, backend: Backend, say: Say, checked: Checked | None = None) -> Path:
    """Make Table 2 and Figures 2 to 5 of the LSAT paper, with statistics, for the configured rows and seeds.

    Returns:
        The run's folder.

    Raises:
        LsatError: on bad input, before anything is written.
    """
    with opened(config, runs_dir, backend, say, serve=False, checked=checked) as run:
        for t in range(1, run.periods.count + 1):
            run.backend.arrive(t)
        audit(run)
        specs = needed(run)
        _train(run, specs)
        write_atomic(run.folder.path / "trainings.csv", _trainings(run, specs).to_csv(index=False))
        for seed in config.seeds:
            steps.choose(run, seed, range(cross.first_model(run), run.periods.count))
        for seed in config.seeds:
            steps.measure(run, seed, run.tested)
            derived.measure(run, seed, run.tested)
            run.say(f"seed {seed}: {len(run.tested)} periods scored")
        cross.score(run)
        results.write(run, tables.write)
    return run.folder.path


def needed(run: Run) -> list[Spec]:
    """Return every distinct model of the study, parents first."""
    specs: list[Spec] = []
    for seed in run.config.seeds:
        for t in range(cross.first_model(run), run.periods.count):
            specs += [s for p in run.plans(seed, t).values() for s in p.specs()]
        followed: list[Strategy] = cross.followed(run, seed)
        specs += [s for c in followed for t in range(1, run.periods.count) if (p := c.plan(t)) for s in p.specs()]
    return closure(specs)


def audit(run: Run) -> None:
    """Check that nothing read for period t lies in or after the period that it is tested on.

    Raises:
        LeakageError: naming the test and what was read.
    """
    for seed in run.config.seeds:
        for t in run.tested:
            plans = run.plans(seed, t - 1).values()
            slices = {s for spec in closure(s for p in plans for s in p.specs()) for s in _read(spec)}
            slices |= {s for p in plans if p.learned for s in p.learned.slices}
            slices |= {s for r in run.strategies[seed] if isinstance(r, Derived) for s in derived.slices(run, r, t)}
            reads = [leakage.Read(f"{s.part} rows of D_{s.period}", run.periods.rows(*s).row) for s in slices]
            leakage.check(run.periods, reads, t, ties=run.config.data.ties == "file-order")
    run.say("leakage audit: nothing that is read for a period lies in or after its test")


def _read(spec: Spec) -> tuple[Slice, ...]:
    return (*spec.train, *spec.validation)


def _train(run: Run, specs: list[Spec]) -> None:
    # Chains and what they start from first: they alone are sequential, all else fills the room beside them.
    starts = {parent.digest for spec in specs for parent in spec.parents()}
    order = sorted(specs, key=lambda s: (not s.parents() and s.digest not in starts, -len(s.train)))
    work = {s.digest: len(s.train) for s in order if s.digest not in run.store}
    run.say(f"{len(specs)} distinct models: {len(specs) - len(work)} reused, {len(work)} to train")
    began = told = time.time()

    def progress(counts: dict[str, int]) -> None:
        nonlocal told
        if time.time() - told >= 20 and counts["done"]:
            told = time.time()
            done = [digest for digest in work if digest in run.store]
            part = sum(work[digest] for digest in done) / sum(work.values())  # by the slices trained on, not by count
            left = (told - began) * (1 / part - 1) if part else float("nan")
            running, waiting = counts["running"], counts["waiting"]
            run.say(f"trained {len(done)}, running {running}, waiting {waiting}; about {left:.0f} s to go")

    steps.train(run, 0, order, progress)


def _penalty(spec: Spec) -> str:
    """Return a regulariser's kind, weight and reduction over modules, nothing where there is none."""
    if not isinstance(spec, AdapterSpec) or not (penalty := spec.regulariser):
        return ""
    return f"{penalty.kind}({penalty.weight:g}, {penalty.reduction})"


def _trainings(run: Run, specs: list[Spec]) -> pd.DataFrame:
    """Return one row per distinct model: what it is and what its training took."""
    frame = run.timings.frame()
    seconds = frame[frame["stage"] == "train"].groupby("subject")["seconds"].sum()
    rows = []
    for spec in specs:
        facts = run.store.manifest(spec.digest)["facts"]
        rows.append(
            {
                "digest": spec.digest,
                "kind": "lora" if isinstance(spec, AdapterSpec) else spec.model,
                "seed": spec.seed,
                "last_period": spec.last_period,
                "slices": len(spec.train),
                "init": spec.init.digest if spec.init else "",
                "auc": facts.get("auc"),
                "best_step": facts.get("best_step"),
                "steps": facts.get("steps"),
                "stopped_by": facts.get("stopped_by"),
                "penalty": _penalty(spec),
                "penalty_ratio": facts.get("penalty_ratio"),
                "validation_users": len(np.unique(run.periods.select(spec.validation).user)),
                "targets": facts.get("targets"),
                "seconds": seconds.get(spec.digest, np.nan),
            }
        )
    order = ["kind", "seed", "last_period", "slices", "digest"]
    return pd.DataFrame(rows).sort_values(order, kind="stable")
