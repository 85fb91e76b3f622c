"""What the replay and the study share: the log, the folder, the sessions, and how results are written."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray

from lsat_ray import data, report
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone import nano
from lsat_ray.backbone.load import fingerprint, locate
from lsat_ray.baselines import classical
from lsat_ray.baselines.naive import NAMES, SUM, naive_scores
from lsat_ray.baselines.spec import ClassicalSpec
from lsat_ray.config import Experiment
from lsat_ray.data.periods import Slice, cut
from lsat_ray.distributed.replay import StreamReplayer
from lsat_ray.distributed.training import TrainingSessions
from lsat_ray.evaluation.metrics import FIELDS, summarise
from lsat_ray.runs.folder import RunDir, write_atomically
from lsat_ray.runs.ledger import Ledger
from lsat_ray.runs.tasks import Coefficients, Context, Score, Task
from lsat_ray.runs.timings import Timings
from lsat_ray.scoring.gate import fit_gate
from lsat_ray.scoring.model import Model, probability
from lsat_ray.strategies import Plan, Setting, Strategy, make

Say = Callable[[str], None]
METRICS = ["strategy", "period", "seed", *FIELDS]
ORACLE, FROZEN, IN_CONTEXT = "oracle", "frozen", "bookgpt"


class Run:
    """One experiment in its folder."""

    def __init__(self, config: Experiment, runs_dir: Path, say: Say) -> None:
        self.config = config
        self.say = say
        self.dir = RunDir(runs_dir, config)
        self.runs_dir = Path(runs_dir).resolve()

    def check(self) -> None:
        """Read the log and check the rows and the backbone's place; nothing is written and no cluster is needed.

        Raises:
            LsatError: on bad input.
        """
        log = data.load(self.config.data, self.config.periods)
        self.periods = cut(log, self.config.data, self.config.periods)
        self.strategies(Setting("", "", self.config, 0, self.row_counts))
        if self.config.backbone.path != "nano":
            locate(self.config.backbone)

    def run(self) -> Path:
        """Do what is not done yet, on the cluster that is connected, and return the run's folder.

        Raises:
            LsatError: on bad input, before anything is written.
        """
        began = time.time()
        if not hasattr(self, "periods"):
            self.check()
        self.dir.open()
        try:
            self.ledger = Ledger(self.dir.path / "ledger.jsonl")
            self.timings = Timings(self.dir.path / "timings.jsonl")
            self.store = AdapterStore(self.dir.adapters)
            self._announce()
            self.sessions = TrainingSessions(self.config.engine, self.dir.path)
            self.replayer: Any = None
            try:
                self.start()
                self.timings.add("start-up", began, time.time() - began)
                self.work()
            finally:
                with self.timings.span("start-up", subject="shut-down"):
                    self.stop()
            self._results()
        finally:
            self.dir.close()
        return self.dir.path

    def start(self) -> None:
        """Start the stream and build the backbone while the sessions start."""
        periods = ray.put(self.periods)
        self.replayer = StreamReplayer.remote([periods], self.config.replay.lookahead)  # type: ignore[attr-defined]
        with self.timings.span("backbone"):
            self.folder = self._backbone()
            self.fingerprint = fingerprint(self.folder, self.config.backbone)
        titles = self.periods.titles
        self.sessions.open(Context(self.config, str(self.folder), str(self.dir.adapters), titles, self.replayer))

    def work(self) -> None:
        """Do the run's own work."""
        raise NotImplementedError

    def stop(self) -> None:
        """Let the sessions and the stream go."""
        self.sessions.close()
        if self.replayer:
            ray.kill(self.replayer)

    def _announce(self) -> None:
        last = self.ledger.records()[-1:]
        if last:
            where = f"seed {last[0]['seed']}, period {last[0]['period']}, after stage {last[0]['stage']}"
            self.say(f"RESUMED {where} ({len(self.ledger)} records, {len(self.store.digests())} models kept)")
        elif kept := len(self.store.digests()):
            self.say(f"RESUMED before the first record ({kept} models kept) in {self.dir.path}")
        else:
            self.say(f"FRESH run in {self.dir.path}")

    def _backbone(self) -> Path:
        if self.config.backbone.path != "nano":
            return locate(self.config.backbone)
        root, threads = self.runs_dir / "backbones", self.config.engine.threads
        return nano.build(self.periods, self.config.backbone.nano, self.config.prompt, root, threads, self.say)

    # what the config's rows are

    @property
    def row_counts(self) -> tuple[int, ...]:
        """Rows of D_1..D_T."""
        return tuple(b - a for a, b in zip(self.periods.borders[:-1], self.periods.borders[1:], strict=True))

    def setting(self, seed: int) -> Setting:
        """Return what all specs of a seed share."""
        return Setting(self.fingerprint, self.periods.fingerprint, self.config, seed, self.row_counts)

    def strategies(self, setting: Setting) -> list[Strategy]:
        """Return the configured update strategies of the LLM."""
        names = [n for n in self.config.strategies if n not in self.classical_names and n != IN_CONTEXT]
        config = self.config.model_copy(update={"strategies": tuple(names)})
        return make(Setting(setting.backbone, setting.data, config, setting.seed, setting.rows))

    @cached_property
    def classical_names(self) -> list[str]:
        """The configured rows that are classical recommenders (`mf/full-retraining`, ...)."""
        known = classical.rows("", 0)
        return [n for n in self.config.strategies if n in known]

    def classical_rows(self, seed: int) -> dict[str, Callable[[int], ClassicalSpec]]:
        """Return, for every configured classical row, the function from period to spec."""
        rows = classical.rows(self.periods.fingerprint, seed)
        return {n: rows[n] for n in self.classical_names}

    @cached_property
    def fixed(self) -> dict[str, np.ndarray]:
        """Scores that need no model, of all samples: the naive rows and, where the truth is known, the oracle."""
        naive = naive_scores(self.periods.samples, self.periods.borders[0])
        fixed = {name: naive[name] for name in NAMES}
        if self.periods.samples.probability is not None:
            fixed[ORACLE] = self.periods.samples.probability
        return fixed

    # doing and writing

    def do(self, t: int, tasks: list[Task], told: Callable[[dict[str, int]], None] | None = None) -> dict[str, Any]:
        """Let the sessions do tasks and book their seconds."""
        results = self.sessions.run(tasks, set(self.store.digests()), told)
        for key, result in results.items():
            if isinstance(result, dict) and "seconds" in result:
                start = result["start"]
                for stage, seconds in result["seconds"].items():
                    self.timings.add(stage, start, seconds, t, key, result["targets"] if stage == "train" else 0)
                    start += seconds
        return results

    def model(self, seed: int, name: str, t: int, plan: Plan, weights: tuple[float, ...]) -> Model:
        """Return what a strategy serves after t."""
        return Model(name, t, plan.merge, tuple(s.digest for s in plan.adapters), weights, plan.space, seed)

    def chosen_already(self, t: int, plans: dict[str, Plan]) -> dict[str, tuple[float, ...]]:
        """Return the weights of the plans that have nothing to search: fixed ones, and those fitted by gradient."""
        chosen = {n: p.grid[0] for n, p in plans.items() if p.fit is None and len(p.grid) == 1}
        tasks = {
            n: Coefficients(tuple(s.digest for s in p.fit.adapters), p.fit.rows, p.fit.pull, t)
            for n, p in plans.items()
            if p.fit is not None and p.merge != "gated-ensemble"
        }
        gates = {n: [s.digest for s in p.adapters] for n, p in plans.items() if p.merge == "gated-ensemble"}
        if gates:
            margins = self.validation_margins(t, {d for members in gates.values() for d in members})
            label = self.periods.rows(t, "validation").label
            chosen |= {n: fit_gate([margins[d] for d in members], label) for n, members in gates.items()}
        if tasks:
            with self.timings.span("search", t):
                found = self.do(t, list({task.key: task for task in tasks.values()}.values()))
            chosen |= {n: found[task.key] for n, task in tasks.items()}
        return chosen

    def validation_margins(self, t: int, digests: set[str]) -> dict[str, np.ndarray]:
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
        if tasks:
            with self.timings.span("score", t, targets=len(rows) * len(tasks)):
                results = self.do(t, list(tasks.values()))
            out |= {digest: results[task.key][1][0] for digest, task in tasks.items()}
        return out

    def record(self, seed: int, name: str, t: int, score: np.ndarray, **facts: Any) -> None:
        """Write scores, then the ledger's line: the line says that the scores are there."""
        rows = self.periods.rows(t)
        columns = {"row": rows.row, "user": rows.user, "item": rows.item, "label": rows.label, "score": score}
        write_atomically(self.dir.scores(name, seed, t), pd.DataFrame(columns))
        calibrated = name != SUM and name not in self.classical_names
        self.ledger.append(seed, name, t, "score", **summarise(rows.label, score, rows.user, calibrated), **facts)

    def record_rival(self, seed: int, name: str, t: int, score: np.ndarray) -> None:
        """Record the score on D_t of a classical row, by its model of period t - 1, or of the in-context row."""
        if name == IN_CONTEXT:
            self.record(seed, name, t, probability(score))
        else:
            self.record(seed, name, t, score, adapters=[self.classical_rows(seed)[name](t - 1).digest])

    def record_fixed(self, seed: int, t: int) -> None:
        """Record the rows that need no model."""
        span = self.periods.span(t)
        for name, score in self.fixed.items():
            if self.ledger.get(seed, name, t, "score") is None:
                self.record(seed, name, t, score[span])

    def _results(self) -> None:
        """Write metrics, coefficients, timings and the report from ledger and scores."""
        with self.timings.span("report"):
            frame = pd.DataFrame(self.ledger.records("score"))[METRICS]
            frame = frame.sort_values(["seed", "period", "strategy"], kind="stable").reset_index(drop=True)
            write_atomically(self.dir.path / "metrics.parquet", frame)
            if tables := sorted((self.dir.search / "coefficients").glob("*.parquet")):
                merged = pd.concat([pd.read_parquet(p) for p in tables], ignore_index=True)
                write_atomically(self.dir.search / "coefficients.parquet", merged)
            self.results(frame)
            write_atomically(self.dir.path / "timings.parquet", self.timings.frame())
            report.write(self.dir.path)
        write_atomically(self.dir.path / "timings.parquet", self.timings.frame())

    def results(self, metrics: pd.DataFrame) -> None:
        """Write what this kind of run has besides."""


def newest(specs: list[AdapterSpec], t: int) -> list[AdapterSpec]:
    """Return the specs that can be trained in period t and not before."""
    return [s for s in specs if s.last_period == t]
