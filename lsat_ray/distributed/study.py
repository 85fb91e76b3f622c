"""The study: a finished log in back-fill. Every distinct adapter once, as many at a time as there are sessions."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import ray

from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.baselines.spec import ClassicalRecipe, ClassicalSpec
from lsat_ray.data.periods import Part, Slice
from lsat_ray.distributed.run import FROZEN, IN_CONTEXT, Run
from lsat_ray.evaluation import delong, leakage
from lsat_ray.evaluation.warmcold import seen_items
from lsat_ray.report import cross as curves
from lsat_ray.report import study as figures
from lsat_ray.report.account import fits, training
from lsat_ray.report.folder import RunFolder
from lsat_ray.runs.folder import write_atomically
from lsat_ray.runs.tasks import ClassicalFit, ClassicalScore, Fit, InContextScore, Score, Task
from lsat_ray.scoring.model import OUTPUT_MERGES, Model, combine, passes
from lsat_ray.strategies import Plan, Strategy
from lsat_ray.strategies.fine_tuning import FineTuning
from lsat_ray.strategies.full_retraining import FullRetraining
from lsat_ray.strategies.graph import closure

Wanted = tuple[Model, int, Part]
"""A model and the rows (period, part) on which its score is wanted."""


class Study(Run):
    """Table 2 and Figures 2 to 5 of the LSAT paper, with statistics, for the configured rows and seeds."""

    def work(self) -> None:
        """Train, choose, score; every step is skipped where its result is kept."""
        for t in range(1, self.periods.count + 1):
            ray.get(self.replayer.arrive.remote(t))
        self.rows = {seed: self.strategies(self.setting(seed)) for seed in self.config.seeds}
        self.last = self.periods.count
        self.tested = range(self.config.first_test, self.last + 1)
        self._audit()
        self._train()
        for seed in self.config.seeds:
            self._choose(seed)
        for seed in self.config.seeds:
            self._score(seed)
        self._cross()

    # what is needed

    def plans(self, seed: int, t: int) -> dict[str, Plan]:
        """Return the plans of period t."""
        return {s.name: p for s in self.rows[seed] if (p := s.plan(t)) is not None}

    def _curves(self, seed: int) -> list[Strategy]:
        """Return the rows that Fig. 2 and 4 follow from the first period on, under the first seed."""
        followed = (FullRetraining.name, FineTuning.name) if self._followed_from_one(seed) else ()
        return [s for s in self.rows[seed] if s.name in followed]

    def _followed_from_one(self, seed: int) -> bool:
        return self.config.study.every_period and seed == self.config.seeds[0]

    def needed(self) -> list[AdapterSpec]:
        """Return every distinct adapter of the study, parents first."""
        specs: list[AdapterSpec] = []
        for seed in self.config.seeds:
            for t in range(self._first_model, self.last):
                specs += [s for p in self.plans(seed, t).values() for s in p.specs()]
            specs += [s for c in self._curves(seed) for t in range(1, self.last) if (p := c.plan(t)) for s in p.specs()]
        return closure(specs)

    @property
    def _first_model(self) -> int:
        return self.config.first_test - max((1, *self.config.study.lags))

    @property
    def _split(self) -> int:
        """Period after which Fig. 3 splits warm and cold."""
        return self.config.study.warm_cold_after or max(self.config.first_test - 1, self.last * 3 // 4)

    def needed_classical(self) -> list[ClassicalSpec]:
        """Return every distinct classical model of the study, parents first."""
        found: dict[str, ClassicalSpec] = {}
        for seed in self.config.seeds:
            first = 1 if self._followed_from_one(seed) else self._first_model
            for plan in self.classical_rows(seed).values():
                for t in range(1, self.last):
                    spec = plan(t)
                    if t >= first or plan(self.last - 1).init is not None:
                        found.setdefault(spec.digest, spec)
        return list(found.values())

    # steps

    def _audit(self) -> None:
        """Check that nothing read for period t lies in or after the period that it is tested on."""
        for seed in self.config.seeds:
            for t in self.tested:
                specs = closure(s for p in self.plans(seed, t - 1).values() for s in p.specs())
                slices = {s for spec in specs for s in (*spec.train, *spec.validation)}
                slices |= {s for p in self.plans(seed, t - 1).values() if p.fit for s in p.fit.rows}
                reads = [leakage.Read(f"{s.part} rows of D_{s.period}", self.periods.rows(*s).row) for s in slices]
                leakage.check(self.periods, reads, t, ties=self.config.data.ties == "file-order")
        self.say("leakage audit: nothing that is read for a period lies in or after its test")

    def _train(self) -> None:
        adapters, rivals = self.needed(), self.needed_classical()
        # Chains and what they start from first: they alone are sequential, all else fills the room beside them.
        starts = {parent.digest for spec in adapters for parent in spec.parents()}
        adapters.sort(key=lambda s: (not s.parents() and s.digest not in starts, -len(s.train)))
        tasks: list[Fit | ClassicalFit] = [Fit(s, s.last_period) for s in adapters if s.digest not in self.store]
        tasks += [ClassicalFit(s, s.last_period) for s in rivals if s.digest not in self.store]
        work = {t.key: len(t.spec.train) for t in tasks}
        total = len(adapters) + len(rivals)
        self.say(f"{total} distinct models: {total - len(tasks)} reused, {len(tasks)} to train")
        began = told = time.time()

        def progress(counts: dict[str, int]) -> None:
            nonlocal told
            if time.time() - told >= 20 and counts["done"]:
                told = time.time()
                done = [key for key in work if key in self.store]
                part = sum(work[key] for key in done) / sum(work.values())  # by the rows trained on, not by count
                left = (told - began) * (1 / part - 1) if part else float("nan")
                running, waiting = counts["running"], counts["waiting"]
                self.say(f"trained {len(done)}, running {running}, waiting {waiting}; about {left:.0f} s to go")

        self.do(0, list(tasks), progress)
        self._trainings(adapters, rivals)

    def _trainings(self, adapters: list[AdapterSpec], rivals: list[ClassicalSpec]) -> None:
        """Write `trainings.csv`, a row per distinct model."""
        frame = self.timings.frame()
        seconds = frame[frame["stage"] == "train"].groupby("subject")["seconds"].sum()
        rows = []
        specs: list[AdapterSpec | ClassicalSpec] = [*adapters, *rivals]
        for spec in specs:
            facts = self.store.manifest(spec.digest)["facts"]
            rows.append(
                {
                    "digest": spec.digest,
                    "kind": "lora" if isinstance(spec, AdapterSpec) else spec.model,
                    "seed": spec.seed,
                    "last_period": spec.last_period,
                    "slices": len(spec.train),
                    "init": spec.init.digest if spec.init else "",
                    "auc": facts.get("auc"),
                    "targets": facts.get("targets"),
                    "seconds": seconds.get(spec.digest, np.nan),
                }
            )
        frame = pd.DataFrame(rows).sort_values(["kind", "seed", "last_period", "slices", "digest"], kind="stable")
        write_atomically(self.dir.path / "trainings.csv", frame.to_csv(index=False))

    def _choose(self, seed: int) -> None:
        """Choose merge weights on V_t for every period, all candidates of all periods at once."""
        open_ = {
            t: {n: p for n, p in self.plans(seed, t).items() if self.ledger.get(seed, n, t, "search") is None}
            for t in range(self._first_model, self.last)
        }
        grids = {
            (t, n): [self.model(seed, n, t, p, w) for w in p.grid]
            for t, plans in open_.items()
            for n, p in plans.items()
            if p.fit is None and len(p.grid) > 1
        }
        margins = self._passes([(m, m.period, "validation") for models in grids.values() for m in models])
        for t, plans in open_.items():
            chosen = self.chosen_already(t, plans)
            label = self.periods.rows(t, "validation").label
            table = []
            for name in plans:
                if (t, name) not in grids:
                    continue
                models = grids[t, name]
                scores = [self._combined(m, t, "validation", margins) for m in models]
                auc = np.array([delong.interval(label, s).auc for s in scores])
                best = 0 if np.isnan(auc).any() else int(np.argmax(auc))
                chosen[name] = models[best].weights
                table += [
                    (seed, t, name, m.weights[0], float(a), i == best)
                    for i, (m, a) in enumerate(zip(models, auc, strict=True))
                ]
            if table:
                columns = ["seed", "period", "strategy", "coefficient", "auc", "chosen"]
                file = self.dir.search / "coefficients" / f"seed{seed}-period{t:02d}.parquet"
                write_atomically(file, pd.DataFrame(table, columns=columns))
            for name, plan in plans.items():
                adapters = [s.digest for s in plan.adapters]
                self.ledger.append(seed, name, t, "search", adapters=adapters, weights=list(chosen[name]))

    def served(self, seed: int, t: int) -> list[Model]:
        """Return the models that would be served after period t."""
        out = [Model(FROZEN, t, FROZEN, seed=seed)]
        for name, plan in self.plans(seed, t).items():
            record = self.ledger.get(seed, name, t, "search")
            assert record is not None
            out.append(self.model(seed, name, t, plan, tuple(record["weights"])))
        return out

    def _score(self, seed: int) -> None:
        """Score every tested period with the models of the period before, and with older ones where a lag is asked."""
        models = {t: self.served(seed, t - 1) for t in self.tested}
        margins = self._passes([(m, t, "all") for t, several in models.items() for m in several])
        rivals = self._rival_scores(seed, [(t - 1, t) for t in self.tested])
        for t, several in models.items():
            for model in several:
                if self.ledger.get(seed, model.strategy, t, "score") is None:
                    score = self._combined(model, t, "all", margins)
                    self.record(seed, model.strategy, t, score, digest=model.digest)
            for name in (*self.classical_names, *([IN_CONTEXT] if IN_CONTEXT in self.config.strategies else [])):
                if self.ledger.get(seed, name, t, "score") is None:
                    self.record_rival(seed, name, t, rivals[name, t - 1, t])
            self.record_fixed(seed, t)
        self.say(f"seed {seed}: {len(self.tested)} periods scored")

    def _cross(self) -> None:
        """Score the models that Fig. 2 to 4 and the lags need besides, and keep their cross scores."""
        wanted: list[Wanted] = []
        rivals: dict[int, list[tuple[int, int]]] = {}
        for seed in self.config.seeds:
            for curve in self._curves(seed):
                for t in range(1, self.last):
                    if (plan := curve.plan(t)) is not None:
                        wanted.append((self.model(seed, curve.name, t, plan, plan.grid[0]), self.last, "all"))
            later = range(self._split + 1, self.last + 1)
            # Merges in parameter space would each need passes of their own, and share their items with the ensemble.
            plain = [m for m in self.served(seed, self._split) if m.merge in (FROZEN, "single", *OUTPUT_MERGES)]
            wanted += [(m, t, "all") for m in plain for t in later]
            for k in self.config.study.lags:
                wanted += [(m, t, "all") for t in self.tested for m in self.served(seed, t - k)]
            pairs = [(self._split, t) for t in later]
            if self._followed_from_one(seed):
                pairs += [(t, self.last) for t in range(1, self.last)]
            rivals[seed] = sorted(set(pairs))
        margins = self._passes(wanted)
        frames = [
            self._cross_frame(m.strategy, m.seed, m.period, t, self._combined(m, t, "all", margins))
            for m, t, _ in wanted
        ]
        for seed, pairs in rivals.items():
            for (name, trained, t), score in self._rival_scores(seed, pairs).items():
                frames.append(self._cross_frame(name, seed, trained, t, score))
        if frames:
            cross = pd.concat(frames, ignore_index=True).drop_duplicates(["strategy", "seed", "trained", "row"])
            write_atomically(self.dir.path / "cross.parquet", cross)

    def _cross_frame(self, name: str, seed: int, trained: int, t: int, score: np.ndarray) -> pd.DataFrame:
        rows = self.periods.rows(t)
        columns = {"row": rows.row, "item": rows.item, "label": rows.label, "score": score}
        return pd.DataFrame({"strategy": name, "seed": seed, "trained": trained, "tested": t, **columns})

    def _rival_scores(self, seed: int, pairs: Iterable[tuple[int, int]]) -> dict[tuple[str, int, int], np.ndarray]:
        """Return the rivals' scores by (name, trained, tested)."""
        tasks: dict[tuple[str, int, int], Task] = {}
        for trained, t in pairs:
            for name, plan in self.classical_rows(seed).items():
                tasks[name, trained, t] = ClassicalScore(plan(trained), t)
            if IN_CONTEXT in self.config.strategies and trained == t - 1:
                tasks[IN_CONTEXT, trained, t] = InContextScore(t, self.config.study.demonstrations)
        with self.timings.span("score", subject="rivals"):
            results = self.do(0, list({task.key: task for task in tasks.values()}.values()))
        return {key: results[task.key] for key, task in tasks.items()}

    # forward passes, each once

    def _passes(self, wanted: Iterable[Wanted]) -> dict[tuple[str, int, Part], np.ndarray]:
        """Return the margins of every distinct forward pass, from disk where it was made before."""
        tasks: dict[tuple[str, int, Part], Score] = {}
        for model, t, part in wanted:
            for single in passes(model):
                tasks[single.digest, t, part] = Score(single, (Slice(t, part),), self.last)
        out, missing = {}, {}
        for key, task in tasks.items():
            file = self._pass_file(*key)
            if file.exists():
                out[key] = pd.read_parquet(file)["margin"].to_numpy()
            else:
                missing[key] = task
        if missing:
            targets = sum(len(self.periods.rows(t, part)) for _, t, part in missing)
            with self.timings.span("score", targets=targets):
                results = self.do(0, list(missing.values()))
            for key, task in missing.items():
                row, margins = results[task.key]
                write_atomically(self._pass_file(*key), pd.DataFrame({"row": row, "margin": margins[0]}))
                out[key] = margins[0]
        return out

    def _pass_file(self, digest: str, t: int, part: Part) -> Path:
        return self.dir.path / "passes" / digest[:32] / f"period{t:02d}-{part}.parquet"

    def _combined(
        self, model: Model, t: int, part: Part, margins: dict[tuple[str, int, Part], np.ndarray]
    ) -> np.ndarray:
        return combine(model, [margins[single.digest, t, part] for single in passes(model)])

    # results

    def results(self, metrics: pd.DataFrame) -> None:
        """Write Table 2, the figures' tables and what a lag costs."""
        write_atomically(self.dir.path / "timings.parquet", self.timings.frame())
        run = RunFolder(self.dir.path)
        assert run.timings is not None
        names = sorted(set(metrics["strategy"]))
        spent = training(run.timings, run.ledger, names, len(self.config.seeds))
        stopped = fits(run.ledger, {m["digest"]: m["facts"] for m in run.manifests}, names)
        tables = {"table2": figures.table2(metrics, run.scores, spent, fits=stopped)}
        if self.config.study.paper:
            tables["paper"] = figures.beside_paper(tables["table2"], self.config.study.paper)
        served = {m.strategy: m for m in self.served(self.config.seeds[0], self.last - 1)}
        cost = {name: len(passes(m)) for name, m in served.items()} | dict.fromkeys(
            [*self.classical_names, IN_CONTEXT], 1
        )
        tables["frontier"] = figures.frontier(tables["table2"], cost)
        ensemble = next((n for n in served if n.startswith("lsat-en(") and n != "lsat-en(full)"), None)
        merged = [n for n, m in served.items() if m.merge not in (FROZEN, "single", *OUTPUT_MERGES)]
        if ensemble and merged:
            tables["merges"] = figures.against_ensemble(metrics, run.scores, ensemble, merged)
        cross_file = self.dir.path / "cross.parquet"
        if cross_file.exists():
            cross = pd.read_parquet(cross_file)
            m = self.config.study.warm_until or self.config.replay.long_periods
            if self.config.study.every_period:
                tables["fig2"] = curves.curve_on(self._followed(cross), self.last)
                warm = seen_items(self.periods, range(1, m + 1), warmup=self._warmup)
                tables["fig4"] = curves.curve_on(self._followed(cross), self.last, warm)
            warm = seen_items(self.periods, range(1, self._split + 1), warmup=self._warmup)
            tables["fig3"] = curves.warm_and_cold(cross, self._split, warm)
            tables |= self._lag_table(metrics, cross)
        figures.write(self.dir.path, **tables)

    @property
    def _warmup(self) -> int:
        """Newest samples before D_1 that the backbone or a rival is built from: their items are cold for no row."""
        first, used = self.periods.borders[0], 0
        if self.config.backbone.path == "nano":
            rows = self.config.backbone.nano.rows
            used = first if rows is None else rows
        if self.classical_names:
            used = max(used, ClassicalRecipe().warmup_rows)
        return min(first, used)

    def _followed(self, cross: pd.DataFrame) -> pd.DataFrame:
        names = {FullRetraining.name, FineTuning.name, IN_CONTEXT, *self.classical_names}
        return cross[cross["strategy"].isin(names)]

    def _lag_table(self, metrics: pd.DataFrame, cross: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Return the mean AUC by strategy and serving lag."""
        if not self.config.study.lags:
            return {}
        late = cross.assign(lag=cross["tested"] - cross["trained"])
        late = late[late["lag"].isin(self.config.study.lags) & late["tested"].isin(list(self.tested))]
        keys = ["strategy", "seed", "tested", "lag"]
        found = [
            {
                **dict(zip(keys, key, strict=True)),
                "auc": delong.interval(g["label"].to_numpy(), g["score"].to_numpy()).auc,
            }
            for key, g in late.groupby(keys)
        ]
        table = pd.concat([pd.DataFrame(found), metrics.assign(lag=1)], ignore_index=True)
        return {"lag": table.groupby(["strategy", "lag"])["auc"].mean().reset_index()}
