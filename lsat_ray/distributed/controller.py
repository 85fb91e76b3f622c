"""The loop: a period arrives, is scored by what is served, is trained on; then the next models are served."""

from __future__ import annotations

import ray

from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.data.periods import Slice
from lsat_ray.distributed import serving
from lsat_ray.distributed.run import FROZEN, IN_CONTEXT, Run, newest
from lsat_ray.distributed.search import search
from lsat_ray.runs.folder import write_atomically
from lsat_ray.runs.tasks import ClassicalFit, ClassicalScore, Fit, InContextScore, Task
from lsat_ray.scoring.model import Model
from lsat_ray.strategies import Plan, Strategy
from lsat_ray.strategies.graph import closure


class Replay(Run):
    """Replay the stream, test-then-train; every stage is skipped when the ledger has it."""

    def start(self) -> None:
        """Start the endpoint beside stream and sessions."""
        super().start()
        self.say("starting the endpoint and the training sessions")
        self.handle = serving.start(self.config, self.folder, self.periods.titles, self.dir.adapters, self.dir.path)

    def stop(self) -> None:
        """Let the sessions go and, unless it is to be kept, the endpoint."""
        super().stop()
        if not self.config.serve.keep:
            serving.stop(self.config)

    def work(self) -> None:
        """Replay once a seed."""
        for seed in self.config.seeds:
            self._replay(seed)

    def _replay(self, seed: int) -> None:
        strategies = self.strategies(self.setting(seed))
        wanted, first = self._graph(strategies), self.config.first_test
        for t in range(1, self.periods.count + 1):
            ray.get(self.replayer.arrive.remote(t))
            if t >= first:
                self._score(seed, t, strategies)
            if t == self.periods.count:
                break
            self._train(seed, t, newest(wanted, t))
            if t >= first - 1:
                self._publish(seed, t, self._choose(seed, t, strategies))

    def _graph(self, strategies: list[Strategy]) -> list[AdapterSpec]:
        """Return every adapter of the replay, parents first; each is trained in the period in which it can be."""
        tested = range(self.config.first_test - 1, self.periods.count)
        plans = [p for t in tested for s in strategies if (p := s.plan(t)) is not None]
        return closure(spec for plan in plans for spec in plan.specs())

    def _score(self, seed: int, t: int, strategies: list[Strategy]) -> None:
        """Score D_t with what is served, before anything is trained on it."""
        served = [*(s.name for s in strategies), FROZEN]
        missing = [n for n in served if self.ledger.get(seed, n, t, "score") is None]
        rows = self.row_counts[t - 1]
        if missing:
            self._serve_again(seed, t - 1, strategies)
            (ref,) = ray.get(self.replayer.read.remote([Slice(t, "all")], t))
            with self.timings.span("serve", t, targets=rows * len(missing)):
                bulk = self.handle.score_bulk.remote(ref, missing).result()
            for name in missing:
                if bulk.period[name] != t - 1:
                    raise AssertionError(f"{name}: the endpoint serves period {bulk.period[name]}, not {t - 1}")
                self.record(seed, name, t, bulk.scores[name], digest=bulk.digest[name])
        self._score_rivals(seed, t)
        self.record_fixed(seed, t)
        found = {n: self.ledger.get(seed, n, t, "score") for n in served}
        line = ", ".join(f"{n} {r['auc']:.3f}" for n, r in found.items() if r)
        self.say(f"period {t}: {rows} rows scored through the endpoint: AUC {line}")

    def _score_rivals(self, seed: int, t: int) -> None:
        """Score D_t with the rivals of period t - 1."""
        tasks: dict[str, Task] = {n: ClassicalScore(plan(t - 1), t) for n, plan in self.classical_rows(seed).items()}
        if IN_CONTEXT in self.config.strategies:
            tasks[IN_CONTEXT] = InContextScore(t, self.config.study.demonstrations)
        tasks = {n: task for n, task in tasks.items() if self.ledger.get(seed, n, t, "score") is None}
        if not tasks:
            return
        with self.timings.span("score", t, targets=self.row_counts[t - 1] * len(tasks)):
            results = self.do(t, list(tasks.values()))
        for name, task in tasks.items():
            self.record_rival(seed, name, t, results[task.key])

    def _train(self, seed: int, t: int, specs: list[AdapterSpec]) -> None:
        """Train everything that could not be trained before t."""
        tasks: list[Task] = [Fit(s, t) for s in specs if s.digest not in self.store]
        for plan in self.classical_rows(seed).values():
            spec = plan(t)
            chained = plan(t + 1).parents() or t >= self.config.first_test - 1
            if chained and spec.digest not in self.store:
                tasks.append(ClassicalFit(spec, t))
        if tasks:
            self.say(f"period {t}: training {len(tasks)} models")
            self.do(t, tasks)

    def _choose(self, seed: int, t: int, strategies: list[Strategy]) -> list[Model]:
        """Choose each strategy's merge weights on V_t."""
        plans = {s.name: p for s in strategies if (p := s.plan(t)) is not None}
        missing = {n: p for n, p in plans.items() if self.ledger.get(seed, n, t, "search") is None}
        chosen = self.chosen_already(t, missing)
        if searched := {n: p for n, p in missing.items() if n not in chosen}:
            chosen |= self._search(seed, t, searched)
        for name, plan in missing.items():
            adapters = [s.digest for s in plan.adapters]
            self.ledger.append(seed, name, t, "search", adapters=adapters, weights=list(chosen[name]))
        return self._models(seed, t, plans)

    def _models(self, seed: int, t: int, plans: dict[str, Plan]) -> list[Model]:
        """Return the models of period t as the ledger has them."""
        records = {n: self.ledger.get(seed, n, t, "search") for n in plans}
        return [self.model(seed, n, t, plans[n], tuple(r["weights"])) for n, r in records.items() if r]

    def _search(self, seed: int, t: int, plans: dict[str, Plan]) -> dict[str, tuple[float, ...]]:
        """Run the Tune experiment of a period and keep its table."""
        models = [self.model(seed, n, t, p, p.grid[0]) for n, p in plans.items()]
        members = {d for m in models if m.merge == "output-ensemble" for d in m.adapters}
        margins = self.validation_margins(t, members)
        label = self.periods.rows(t, "validation").label
        grids = [p.grid for p in plans.values()]
        with self.timings.span("search", t):
            table = search(models, grids, margins, label, t, self.sessions.queue, self.dir.search)
        write_atomically(self.dir.search / "coefficients" / f"seed{seed}-period{t:02d}.parquet", table)
        best = table[table["chosen"]].set_index("strategy")["coefficient"]
        self.say(f"period {t}: chosen on V_{t}: " + ", ".join(f"{n} {w:.1f}" for n, w in best.items()))
        return {n: next(g for g in p.grid if g[0] == best[n]) for n, p in plans.items()}

    def _publish(self, seed: int, t: int, models: list[Model]) -> None:
        """Serve the new models everywhere, then record it."""
        if all(self.ledger.get(seed, m.strategy, t, "publish") for m in models):
            return
        with self.timings.span("publish", t):
            self._swap(seed, t, models)
        for model in models:
            self.ledger.append(seed, model.strategy, t, "publish", digest=model.digest)

    def _swap(self, seed: int, t: int, models: list[Model]) -> None:
        served = [*models, Model(FROZEN, t, FROZEN, seed=seed)]
        serving.publish(self.handle, served, seed * 10_000 + t, self.config.serve.replicas, self.dir.path)

    def _serve_again(self, seed: int, t: int, strategies: list[Strategy]) -> None:
        """After a restart, serve the models of period t if the endpoint does not."""
        current = serving.read_current(self.dir.path)
        if current is None or current.version != seed * 10_000 + t:
            plans = {s.name: p for s in strategies if (p := s.plan(t)) is not None}
            self._swap(seed, t, self._models(seed, t, plans))
