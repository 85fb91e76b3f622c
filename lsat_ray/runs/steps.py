"""The steps of every pipeline, each once: train, choose, serve, measure, record.

Every step skips what ledger and store have: a step that is called again does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lsat_ray.baselines.naive import SUM
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.evaluation.metrics import summarise
from lsat_ray.files import write_atomic
from lsat_ray.runs import search
from lsat_ray.runs.backend import Counts
from lsat_ray.runs.context import Run
from lsat_ray.runs.search import Weighting
from lsat_ray.runs.tasks import Coefficients, Fit, Score, Task, TaskError
from lsat_ray.scoring.gate import fit_gate
from lsat_ray.scoring.model import Model, combine, passes
from lsat_ray.strategies import CHOICE, Plan, Spec, Strategy
from lsat_ray.strategies.graph import closure

Wanted = tuple[Model, Slice]
"""A model and the slice on which its score is wanted."""
Margins = dict[tuple[str, Slice], np.ndarray]
"""What forward passes say, by the pass's digest and the slice."""
Weights = tuple[float, ...]


def do(run: Run, t: int, tasks: Sequence[Task], counts: Counts | None = None) -> dict[str, Any]:
    """Let the backend do tasks, book their seconds under period t (0: none), and return their values by key."""
    if not tasks:
        return {}
    results = run.backend.do(tasks, set(run.store.digests()), counts)
    for key, result in results.items():
        start = result["start"]
        for stage, seconds in result["seconds"].items():
            run.timings.add(stage, start, seconds, t, key, result["targets"] if stage == "train" else 0)
            start += seconds
    return {key: result["value"] for key, result in results.items()}


def train(run: Run, t: int, specs: Iterable[Spec], counts: Counts | None = None, keep: bool = False) -> dict[str, str]:
    """Train the models that the store does not have.

    Args:
        run: the run.
        t: period under which the seconds are booked.
        specs: parents first.
        counts: hears of progress.
        keep: go on without what fails for good, and without what starts from it.

    Returns:
        With `keep`, the reason of every spec that failed, by digest.
    """
    left, failed = [s for s in specs if s.digest not in run.store], dict[str, str]()
    while True:
        try:
            do(run, t, [Fit(s) for s in left], counts)
            return failed
        except TaskError as error:
            if not keep:
                raise
            failed |= error.failed
        for spec in left:
            if lost := [p.digest for p in spec.parents() if p.digest in failed]:
                failed[spec.digest] = failed[lost[0]]
        left = [s for s in left if s.digest not in failed]


# scores


def margins(run: Run, wanted: Iterable[Wanted], t: int = 0) -> Margins:
    """Return what every distinct forward pass says; a pass that was made before comes from disk."""
    tasks = {(one.digest, s): Score(one, s) for model, s in wanted for one in passes(model)}
    out = {key: found for key, task in tasks.items() if (found := _kept(run, task)) is not None}
    missing = {key: task for key, task in tasks.items() if key not in out}
    results = do(run, t, list({task.key: task for task in missing.values()}.values()))
    for key, task in missing.items():
        out[key] = results[task.key]
        row = run.periods.rows(*task.slice).row
        write_atomic(_pass_file(run, *key), pd.DataFrame({"row": row, "margin": out[key]}))
    return out


def combined(model: Model, s: Slice, known: Margins) -> np.ndarray:
    """Return the model's score on a slice, float64 [N], from its passes."""
    return combine(model, [known[one.digest, s] for one in passes(model)])


def _kept(run: Run, task: Score) -> np.ndarray | None:
    """Return the margins of a pass that was made before: by itself, or when its adapter was validated."""
    file = _pass_file(run, task.model.digest, task.slice)
    if file.exists():
        return pd.read_parquet(file)["margin"].to_numpy()
    if task.model.merge == "single" and task.slice.part == "validation":
        row, margin = run.store.validation(task.model.adapters[0])
        if np.array_equal(row, run.periods.rows(*task.slice).row):
            return margin
    return None


def _pass_file(run: Run, digest: str, s: Slice) -> Path:
    return run.folder.path / "passes" / digest[:32] / f"period{s.period:02d}-{s.part}.parquet"


# choose


def choose(run: Run, seed: int, periods: Iterable[int], keep: bool = False) -> None:
    """Choose every row's merge weights after some periods, on V_t or by gradient, and record them.

    With `periods.validation_pool` of k, the weights are chosen on V_(t-k+1) .. V_t as one set of samples. Each V_s is
    scored by the adapters of period s under the candidate weights: no adapter of s was trained on V_s, where one of t
    (full retraining) was. The pool begins with the first period that is served.

    Args:
        run: the run.
        seed: of the adapters.
        periods: the t.
        keep: let the backend keep an experiment per period; a back-fill has hundreds and keeps none.
    """
    wanted = list(periods)
    every = {s: _trained(run, seed, s) for s in {s for t in wanted for s in _pool(run, t)}}
    open_ = {t: _open(run, seed, t, every[t], keep) for t in wanted}
    pools = {t: [s for s in _pool(run, t) if plans.keys() <= every[s].keys()] for t, plans in open_.items()}
    known = margins(
        run,
        [w for t, plans in open_.items() for s in pools[t] for n in plans for w in _asked(seed, n, s, every[s][n])],
    )
    learned = _learned(run, open_)
    for t, plans in open_.items():
        pool = pools[t]
        label = np.concatenate([run.periods.rows(s, "validation").label for s in pool])
        chosen = {n: p.grid[0] for n, p in plans.items() if len(p.grid) == 1}
        for name, plan in plans.items():
            if plan.merge == "gated-ensemble":
                by_period = [[known[w[0].digest, w[1]] for w in _asked(seed, name, s, every[s][name])] for s in pool]
                chosen[name] = fit_gate([np.concatenate(m) for m in zip(*by_period, strict=True)], label)
            elif plan.learned:
                chosen[name] = learned[_coefficients(plan).key]
        candidates = [
            Weighting(
                n,
                w,
                np.concatenate([_on_validation(seed, n, s, every[s][n], w, known) for s in pool]),
                blend=p.merge != CHOICE,
            )
            for n, p in plans.items()
            if len(p.grid) > 1
            for w in p.grid
        ]
        if candidates:
            chosen |= _searched(run, seed, t, candidates, label, keep)
        for name, plan in plans.items():
            adapters = [s.digest for s in plan.adapters]
            weights = list(chosen[name])
            if not run.ledger.get(seed, name, t, "search", plan.digest):
                run.ledger.append(seed, name, t, "search", digest=plan.digest, adapters=adapters, weights=weights)


def _open(run: Run, seed: int, t: int, plans: dict[str, Plan], keep: bool) -> dict[str, Plan]:
    """Return the plans whose weights are to be chosen; where one is searched, all are, so that its table is whole."""
    found = {n: p for n, p in plans.items() if not run.ledger.get(seed, n, t, "search", p.digest)}
    wide = {n: p for n, p in plans.items() if len(p.grid) > 1}
    lost = keep and wide and not run.backend.kept(search.experiment(seed, t))
    return found | wide if lost or found.keys() & wide.keys() else found


def model(seed: int, name: str, t: int, plan: Plan, weights: Weights) -> Model:
    """Return what a row serves after period t under some weights."""
    if plan.merge == CHOICE:
        return Model(name, t, "single", (plan.adapters[plan.grid.index(weights)].digest,), (1.0,), seed=seed)
    return Model(name, t, plan.merge, tuple(s.digest for s in plan.adapters), weights, plan.space, seed)


def models(run: Run, seed: int, t: int) -> list[Model]:
    """Return what answers after period t: its models, their weights as the ledger has them, or older ones that stay."""
    out = []
    for row in run.strategies[seed]:
        if row.plan(t) is None:
            continue
        found = _newest(run, seed, row, t)
        assert found and (found.period == t or run.config.engine.on_failure == "keep-last"), f"{row.name}: none for {t}"
        out.append(found)
    return out


def _newest(run: Run, seed: int, row: Strategy, t: int) -> Model | None:
    """Return a row's models of period t, or of the newest period before whose weights were chosen."""
    for s in range(t, min(t, run.tested[0] - 1) - 1, -1):
        if (plan := row.plan(s)) and (record := run.ledger.get(seed, row.name, s, "search", plan.digest)):
            return model(seed, row.name, s, plan, tuple(record["weights"]))
    return None


def mark_stale(run: Run, seed: int, t: int, failed: dict[str, str]) -> None:
    """Record which rows keep older models after period t because a training failed for good, and say so.

    Raises:
        LsatError: when a row has no older ones.
    """
    for row in run.strategies[seed] if failed else ():
        plan = row.plan(t)
        reason = plan and next((failed[s.digest] for s in closure(plan.specs()) if s.digest in failed), None)
        if plan is None or reason is None:
            continue
        kept = _newest(run, seed, row, t - 1) if t >= run.tested[0] else None
        if kept is None:
            raise LsatError(f"{reason}; {row.name} has no earlier models that could stay (engine.on_failure keep-last)")
        run.ledger.append(seed, row.name, t, "stale", digest=plan.digest, kept=kept.period, reason=reason)
        run.say(f"period {t}: {row.name} keeps its models of period {kept.period}: {reason}")


def _trained(run: Run, seed: int, t: int) -> dict[str, Plan]:
    """Return the plans of period t but those whose training has failed for good (`engine.on_failure: keep-last`)."""
    plans = run.plans(seed, t)
    if run.config.engine.on_failure == "stop":
        return plans
    return {n: p for n, p in plans.items() if all(s.digest in run.store for s in p.specs())}


def _pool(run: Run, t: int) -> range:
    """Return the periods on whose validation splits the weights of period t are chosen."""
    return range(max(min(t, run.tested[0] - 1), t - run.config.periods.validation_pool + 1), t + 1)


def _on_validation(seed: int, name: str, s: int, plan: Plan, weights: Weights, known: Margins) -> np.ndarray:
    """Return a candidate's score on V_s, by the adapters of period s."""
    return combined(model(seed, name, s, plan, weights), Slice(s, "validation"), known)


def _asked(seed: int, name: str, t: int, plan: Plan) -> list[Wanted]:
    """Return what must be scored on V_t before the plan's weights can be chosen."""
    s = Slice(t, "validation")
    if plan.merge == "gated-ensemble":
        return [(one, s) for one in passes(model(seed, name, t, plan, ()))]
    return [(model(seed, name, t, plan, w), s) for w in plan.grid] if len(plan.grid) > 1 else []


def _coefficients(plan: Plan) -> Coefficients:
    assert plan.learned is not None
    return Coefficients(tuple(s.digest for s in plan.learned.adapters), plan.learned.slices, plan.learned.pull)


def _learned(run: Run, open_: dict[int, dict[str, Plan]]) -> dict[str, Weights]:
    """Return the weights that are learned by gradient, by the task's key."""
    plans = [p for by_name in open_.values() for p in by_name.values() if p.learned and p.merge != "gated-ensemble"]
    tasks = {task.key: task for task in map(_coefficients, plans)}
    if not tasks:
        return {}
    with run.timings.span("search"):
        return do(run, 0, list(tasks.values()))


def _searched(
    run: Run, seed: int, t: int, candidates: list[Weighting], label: np.ndarray, keep: bool
) -> dict[str, Weights]:
    """Measure candidates, keep the table, and return each strategy's weights."""
    with run.timings.span("search", t):
        reached = [search.measure(label, c.score) for c in candidates]
    table = search.table(seed, t, candidates, reached, run.config.search.select)
    name = search.experiment(seed, t)
    write_atomic(run.folder.search / "coefficients" / f"{name}.parquet", table)
    if keep:
        run.backend.keep_search(name, candidates, label, reached)
    return search.chosen(candidates, table["share"].to_numpy())


# serve


def version(seed: int, t: int) -> int:
    """Return the version under which the models of period t are served."""
    return seed * 10_000 + t


def publish(run: Run, seed: int, t: int) -> None:
    """Serve the models of period t everywhere, then record it."""
    following = [m for m in models(run, seed, t) if m.served]
    if all(run.ledger.get(seed, m.strategy, t, "publish", m.digest) for m in following):
        return
    with run.timings.span("publish", t):
        run.backend.publish(following, version(seed, t))
    for m in following:
        run.ledger.append(seed, m.strategy, t, "publish", digest=m.digest)


def keep_served(run: Run, seed: int, t: int) -> None:
    """Serve the models of period t where something else is served: after a restart, or when an adapter was damaged."""
    following = [m for m in models(run, seed, t) if m.served]
    if following and run.backend.serving() != version(seed, t):
        run.backend.publish(following, version(seed, t))


# measure


def unmeasured(run: Run, seed: int, t: int) -> list[Model]:
    """Return the models of period t - 1 whose score on D_t is not recorded."""
    return [m for m in models(run, seed, t - 1) if not run.ledger.get(seed, m.strategy, t, "score", m.digest)]


def measure_served(run: Run, seed: int, t: int) -> None:
    """Score D_t through the endpoint with the models of period t - 1 that it serves, and record it."""
    asked = {m.strategy: m for m in unmeasured(run, seed, t) if m.served}
    if not asked:
        return
    keep_served(run, seed, t - 1)
    count = len(run.periods.rows(t))
    with run.timings.span("serve", t, targets=count * len(asked)):
        answers = run.backend.score_served(t, list(asked))
    for name, (answered, score) in answers.items():
        if answered.digest != asked[name].digest:
            raise AssertionError(f"{name}: the endpoint answers with {answered.digest}, not {asked[name].digest}")
        record(run, asked[name], t, score)


def measure(run: Run, seed: int, periods: Sequence[int]) -> None:
    """Score periods with the models of the period before, by the workers, and record it; then the fixed rows."""
    asked = [(m, Slice(t, "all")) for t in periods for m in unmeasured(run, seed, t)]
    known = margins(run, asked, periods[0] if len(periods) == 1 else 0)
    for m, s in asked:
        record(run, m, s.period, combined(m, s, known))
    for t in periods:
        for name, score in run.fixed.items():
            if not run.ledger.get(seed, name, t, "score"):
                record_scores(run, seed, name, t, score[run.periods.span(t)], name != SUM)


def record(run: Run, m: Model, t: int, score: np.ndarray) -> None:
    """Record a model's scores on D_t; `stale` counts the periods that it is behind."""
    stale = {"stale": t - 1 - m.period} if m.period < t - 1 else {}
    record_scores(run, m.seed, m.strategy, t, score, m.calibrated, digest=m.digest, **stale)


def record_scores(run: Run, seed: int, name: str, t: int, score: np.ndarray, calibrated: bool, **facts: Any) -> None:
    """Write a row's scores on D_t, then the ledger's line: the line says that the scores are there."""
    rows = run.periods.rows(t)
    columns = {"row": rows.row, "user": rows.user, "item": rows.item, "label": rows.label, "score": score}
    write_atomic(run.folder.scores(name, seed, t), pd.DataFrame(columns))
    run.ledger.append(seed, name, t, "score", **summarise(rows.label, score, rows.user, calibrated), **facts)
