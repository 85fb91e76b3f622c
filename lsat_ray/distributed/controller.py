"""The loop: a period arrives, is scored by what is served, is trained on; then the next models are served."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray

from lsat_ray import data, report
from lsat_ray.adapters.model import Model
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone import nano
from lsat_ray.backbone.load import fingerprint, locate
from lsat_ray.baselines.naive import NAMES, SUM, naive_scores
from lsat_ray.config import Experiment
from lsat_ray.data.periods import Slice, cut
from lsat_ray.distributed import serving
from lsat_ray.distributed.ledger import Ledger
from lsat_ray.distributed.replay import StreamReplayer
from lsat_ray.distributed.rundir import RunDir, write_atomically
from lsat_ray.distributed.search import search
from lsat_ray.distributed.tasks import Fit, Score, Task
from lsat_ray.distributed.timings import Timings
from lsat_ray.distributed.training import Context, TrainingSessions
from lsat_ray.evaluation.metrics import summarise
from lsat_ray.strategies import Plan, Setting, Strategy, make
from lsat_ray.strategies.graph import closure

Say = Callable[[str], None]
METRICS = ["strategy", "period", "seed", "auc", "auc_low", "auc_high", "log_loss", "accuracy", "rows", "positives"]
ORACLE = "oracle"


class Replay:
    """One run of one experiment; every stage is skipped when the ledger has it."""

    def __init__(self, config: Experiment, runs_dir: Path, say: Say) -> None:
        self.config = config
        self.say = say
        self.dir = RunDir(runs_dir, config)
        self.runs_dir = Path(runs_dir).resolve()

    def run(self) -> Path:
        """Replay the stream to its end and return the run's folder."""
        began = time.time()
        log = data.load(self.config.data, self.config.periods)  # before anything is written: bad input ends here
        self.periods = cut(log, self.config.data, self.config.periods)
        make(Setting("", "", self.config, 0))
        if self.config.backbone.path != "nano":
            locate(self.config.backbone)
        self.dir.open()
        try:
            self.ledger = Ledger(self.dir.path / "ledger.jsonl")
            self.timings = Timings(self.dir.path / "timings.jsonl")
            self.store = AdapterStore(self.dir.adapters)
            self._announce()
            self._start()
            self.timings.add("start-up", began, time.time() - began)
            try:
                for seed in self.config.seeds:
                    self._replay(seed)
            finally:
                with self.timings.span("start-up", subject="shut-down"):
                    self._stop()
            self._results()
        finally:
            self.dir.close()
        return self.dir.path

    def _announce(self) -> None:
        """Say where the run stands."""
        last = self.ledger.records()[-1:]
        if not last:
            self.say(f"FRESH run in {self.dir.path}")
        else:
            r = last[0]
            where = f"seed {r['seed']}, period {r['period']}, after stage {r['stage']}"
            self.say(f"RESUMED {where} ({len(self.ledger)} records, {len(self.store.digests())} adapters kept)")

    def _start(self) -> None:
        """Start stream, sessions and endpoint; the backbone is built while the sessions start."""
        self.sessions = TrainingSessions(self.config.engine, self.dir.path)
        periods = ray.put(self.periods)
        self.replayer = StreamReplayer.remote([periods], self.config.replay.lookahead)  # type: ignore[attr-defined]
        with self.timings.span("backbone"):
            self.folder = self._backbone()
            self.fingerprint = fingerprint(self.folder, self.config.backbone)
        self.sessions.open(
            Context(self.config, str(self.folder), str(self.dir.adapters), self.periods.titles, self.replayer)
        )
        self.say("starting the endpoint and the training sessions")
        self.handle = serving.start(self.config, self.folder, self.periods.titles, self.dir.adapters, self.dir.path)
        naive = naive_scores(self.periods.samples, self.periods.borders[0])
        self.fixed = {name: naive[name] for name in NAMES}
        if self.periods.samples.probability is not None:
            self.fixed[ORACLE] = self.periods.samples.probability

    def _backbone(self) -> Path:
        if self.config.backbone.path != "nano":
            return locate(self.config.backbone)
        root = self.runs_dir / "backbones"
        return nano.build(
            self.periods, self.config.backbone.nano, self.config.prompt, root, self.config.engine.threads, self.say
        )

    def _stop(self) -> None:
        self.sessions.close()
        if not self.config.serve.keep:
            serving.stop()

    def _replay(self, seed: int) -> None:
        setting = Setting(self.fingerprint, self.periods.fingerprint, self.config, seed, self._rows())
        strategies = make(setting)
        wanted = self._graph(strategies)
        first = self.config.first_test
        for t in range(1, self.periods.count + 1):
            arrived = ray.get(self.replayer.arrive.remote(t))
            assert arrived == t
            if t >= first:
                self._score(seed, t, strategies)
            if t == self.periods.count:
                break
            self._train(seed, t, [s for s in wanted if s.last_period == t])
            if t >= first - 1:
                models = self._search(seed, t, strategies)
                self._publish(seed, t, models)

    def _rows(self) -> tuple[int, ...]:
        spans = [self.periods.span(t) for t in range(1, self.periods.count + 1)]
        return tuple(s.stop - s.start for s in spans)

    def _graph(self, strategies: list[Strategy]) -> list[AdapterSpec]:
        """Return every adapter of the replay, parents first; each is trained in the period in which it can be."""
        tested = range(self.config.first_test - 1, self.periods.count)
        plans = [p for t in tested for s in strategies if (p := s.plan(t)) is not None]
        return closure(spec for plan in plans for spec in plan.specs())

    # stages

    def _score(self, seed: int, t: int, strategies: list[Strategy]) -> None:
        """Score D_t with what is served, before anything is trained on it."""
        names = [*(s.name for s in strategies), "frozen"]
        missing = [n for n in names if self.ledger.get(seed, n, t, "score") is None]
        samples = self.periods.rows(t)
        if missing:
            self._serve_again(seed, t - 1)
            refs = ray.get(self.replayer.read.remote([Slice(t, "all")], t))
            with self.timings.span("serve", t, targets=len(samples) * len(missing)):
                bulk = self.handle.score_bulk.remote(refs[0], missing).result()
            for name in missing:
                if bulk.period[name] != t - 1 and name != "frozen":
                    raise AssertionError(f"{name}: the endpoint serves period {bulk.period[name]}, not {t - 1}")
                self._record(seed, name, t, bulk.scores[name], digest=bulk.digest[name])
        span = self.periods.span(t)
        for name, score in self.fixed.items():
            if self.ledger.get(seed, name, t, "score") is None:
                self._record(seed, name, t, score[span])
        line = ", ".join(f"{n} {self.ledger.get(seed, n, t, 'score')['auc']:.3f}" for n in names)  # type: ignore[index]
        self.say(f"period {t}: {len(samples)} rows scored through the endpoint: AUC {line}")

    def _record(self, seed: int, name: str, t: int, score: np.ndarray, **facts: Any) -> None:
        """Write scores, then the ledger's line: the line says that the scores are there."""
        rows = self.periods.rows(t)
        frame = pd.DataFrame(
            {"row": rows.row, "user": rows.user, "item": rows.item, "label": rows.label, "score": score}
        )
        write_atomically(self.dir.scores(name, seed, t), frame)
        metrics = summarise(rows.label, score, probability=name != SUM)
        self.ledger.append(seed, name, t, "score", **metrics, **facts)

    def _train(self, seed: int, t: int, specs: list[AdapterSpec]) -> None:
        """Train every adapter that could not be trained before t."""
        specs = [s for s in specs if s.digest not in self.store]
        if specs:
            self.say(f"period {t}: training {len(specs)} adapters")
            self._work(t, [Fit(s, t) for s in specs])

    def _work(self, t: int, tasks: list[Task]) -> dict[str, Any]:
        """Let the sessions do tasks and book their seconds."""
        results = self.sessions.run(tasks, set(self.store.digests()))
        for key, result in results.items():
            if isinstance(result, dict) and "seconds" in result:
                start = result["start"]
                for stage, seconds in result["seconds"].items():
                    self.timings.add(stage, start, seconds, t, key, result["targets"] if stage == "train" else 0)
                    start += seconds
        return results

    def _search(self, seed: int, t: int, strategies: list[Strategy]) -> list[Model]:
        """Choose each strategy's merge weights on V_t."""
        plans = {s.name: p for s in strategies if (p := s.plan(t)) is not None}
        open_ = {n: p for n, p in plans.items() if self.ledger.get(seed, n, t, "search") is None}
        searched = {n: p for n, p in open_.items() if len(p.grid) > 1}
        chosen = {n: p.grid[0] for n, p in open_.items() if len(p.grid) == 1}
        if searched:
            chosen |= self._tune(seed, t, searched)
        for name, plan in open_.items():
            adapters = [s.digest for s in plan.adapters]
            self.ledger.append(seed, name, t, "search", adapters=adapters, weights=list(chosen[name]))
        return [self._model(seed, n, t, p, self.ledger.get(seed, n, t, "search")) for n, p in plans.items()]

    def _model(self, seed: int, name: str, t: int, plan: Plan, record: dict[str, Any] | None) -> Model:
        assert record is not None
        return Model(name, t, plan.merge, tuple(record["adapters"]), tuple(record["weights"]), plan.space, seed)

    def _tune(self, seed: int, t: int, plans: dict[str, Plan]) -> dict[str, tuple[float, ...]]:
        """Run the Tune experiment of a period and keep its table."""
        models = [
            Model(n, t, p.merge, tuple(s.digest for s in p.adapters), p.grid[0], p.space, seed)
            for n, p in plans.items()
        ]
        members = {d for m in models if m.merge == "output-ensemble" for d in m.adapters}
        margins = self._validation_margins(t, members)
        label = self.periods.rows(t, "validation").label
        with self.timings.span("search", t):
            table = search(
                models, [p.grid for p in plans.values()], margins, label, t, self.sessions.queue, self.dir.search
            )
        write_atomically(self.dir.search / "coefficients" / f"seed{seed}-period{t:02d}.parquet", table)
        best = table[table["chosen"]].set_index("strategy")["coefficient"]
        self.say(f"period {t}: chosen on V_{t}: " + ", ".join(f"{n} {w:.1f}" for n, w in best.items()))
        return {n: next(g for g in p.grid if g[0] == best[n]) for n, p in plans.items()}

    def _validation_margins(self, t: int, digests: set[str]) -> dict[str, np.ndarray]:
        """Return each adapter's margins on V_t: stored with it, or scored now (an adapter that is held)."""
        rows = self.periods.rows(t, "validation").row
        tasks: dict[str, Task] = {}
        out = {}
        for digest in sorted(digests):
            row, margin = self.store.validation(digest)
            if np.array_equal(row, rows):
                out[digest] = margin
            else:
                tasks[digest] = Score(Model("held", t, "single", (digest,), (1.0,)), (Slice(t, "validation"),), t)
        with self.timings.span("score", t, targets=len(rows) * len(tasks)):
            results = self._work(t, list(tasks.values()))
        for digest, task in tasks.items():
            row, margins = results[task.key]
            assert np.array_equal(row, rows)
            out[digest] = margins[0]
        return out

    def _publish(self, seed: int, t: int, models: list[Model]) -> None:
        """Serve the new models everywhere, then record it."""
        if all(self.ledger.get(seed, m.strategy, t, "publish") for m in models):
            return
        with self.timings.span("publish", t):
            self._swap(seed, t, models)
        for model in models:
            self.ledger.append(seed, model.strategy, t, "publish", digest=model.digest)

    def _swap(self, seed: int, t: int, models: list[Model]) -> None:
        served = [*models, Model("frozen", t, "frozen", seed=seed)]
        version = seed * 10_000 + t
        serving.publish(self.handle, served, version, self.config.serve.replicas, self.dir.path)

    def _serve_again(self, seed: int, t: int) -> None:
        """After a restart, serve the models of period t if the endpoint does not."""
        current = serving.read_current(self.dir.path)
        if current is not None and current.version == seed * 10_000 + t:
            return
        setting = Setting(self.fingerprint, self.periods.fingerprint, self.config, seed, self._rows())
        plans = {s.name: p for s in make(setting) if (p := s.plan(t)) is not None}
        models = [self._model(seed, n, t, p, self.ledger.get(seed, n, t, "search")) for n, p in plans.items()]
        self._swap(seed, t, models)

    def _results(self) -> None:
        """Write metrics, timings, coefficients and the report from ledger and scores."""
        with self.timings.span("report"):
            records = self.ledger.records("score")
            frame = pd.DataFrame(records)[METRICS]
            frame = frame.sort_values(["seed", "period", "strategy"], kind="stable").reset_index(drop=True)
            write_atomically(self.dir.path / "metrics.parquet", frame)
            tables = sorted((self.dir.search / "coefficients").glob("*.parquet"))
            if tables:
                merged = pd.concat([pd.read_parquet(p) for p in tables], ignore_index=True)
                write_atomically(self.dir.search / "coefficients.parquet", merged)
            write_atomically(self.dir.path / "timings.parquet", self.timings.frame())
            report.write(self.dir.path)
        write_atomically(self.dir.path / "timings.parquet", self.timings.frame())
        write_atomically(self.dir.path / "adapters.json", json.dumps(self.store.digests(), indent=1))
