"""The replay: a period arrives, is scored by what is served, is trained on; then the next models are served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lsat_ray import report
from lsat_ray.config import Experiment
from lsat_ray.runs import derived, results, steps
from lsat_ray.runs.backend import Backend, Say
from lsat_ray.runs.check import Checked
from lsat_ray.runs.context import Run, opened
from lsat_ray.runs.tasks import Fit
from lsat_ray.strategies import Spec
from lsat_ray.strategies.graph import needed


def replay(config: Experiment, runs_dir: Path, backend: Backend, say: Say, checked: Checked | None = None) -> Path:
    """Replay the stream once per seed, test-then-train, through the endpoint; return the run's folder.

    The same call resumes: every stage is skipped when the ledger has it.

    Raises:
        LsatError: on bad input, before anything is written.
    """
    with opened(config, runs_dir, backend, say, serve=True, checked=checked) as run, ThreadPoolExecutor(1) as beside:
        beside.submit(report.load)
        for seed in config.seeds:
            _replay(run, seed)
        steps.keep_served(run, config.seeds[-1], run.periods.count - 1)
        run.backend.release()
        results.write(run)
    return run.folder.path


def _replay(run: Run, seed: int) -> None:
    first, last = run.config.first_test, run.periods.count
    wanted = needed(run.strategies[seed], range(first - 1, last))
    for t in range(1, last + 1):
        run.backend.arrive(t)
        due = _due(run, seed, wanted, t) if t < last else []
        if due:
            run.say(f"period {t}: training {len(due)} models")
            run.backend.announce([Fit(s) for s in due], set(run.store.digests()))  # scored beside: by older models
        if t >= first:
            steps.measure_served(run, seed, t)
            steps.measure(run, seed, [t])
            derived.measure(run, seed, [t])
            _say_scores(run, seed, t)
        if t == last:
            break
        failed = steps.train(run, t, due, keep=run.config.engine.on_failure == "keep-last")
        if t >= first - 1:
            steps.mark_stale(run, seed, t, failed)
            steps.choose(run, seed, [t], keep=True)
            steps.publish(run, seed, t)
            _say_chosen(run, seed, t)


def _due(run: Run, seed: int, wanted: list[Spec], t: int) -> list[Spec]:
    """Return what is to be trained after period t, with what failed before and is still wanted."""
    due = [s for s in wanted if s.last_period <= t and s.digest not in run.store]
    if any(s.last_period < t for s in due):
        still = {
            s.digest for s in needed(run.strategies[seed], range(max(t, run.config.first_test - 1), run.periods.count))
        }
        due = [s for s in due if s.digest in still]
    return due


def _say_scores(run: Run, seed: int, t: int) -> None:
    found = {s.name: run.ledger.get(seed, s.name, t, "score") for s in run.strategies[seed]}
    line = ", ".join(f"{n} {r['auc']:.3f}" for n, r in found.items() if r)
    run.say(f"period {t}: {len(run.periods.rows(t))} samples scored through the endpoint: AUC {line}")


def _say_chosen(run: Run, seed: int, t: int) -> None:
    plans = {n: p for n, p in run.plans(seed, t).items() if len(p.grid) > 1}
    found = {n: run.ledger.get(seed, n, t, "search", p.digest) for n, p in plans.items()}
    line = ", ".join(f"{n} {r['weights'][0]:.2f}" for n, r in found.items() if r)
    if line:
        run.say(f"period {t}: chosen on V_{t}: {line}")
