"""Measure the rows that are computed from what other rows scored: the hedge, gates, and rows with a side head."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from lsat_ray.baselines.features import side_table
from lsat_ray.baselines.side_head import with_side
from lsat_ray.data.periods import Slice
from lsat_ray.evaluation.metrics import CLIP
from lsat_ray.runs import steps
from lsat_ray.runs.context import Run
from lsat_ray.scoring.gate import fit_sample_gate
from lsat_ray.scoring.hedge import hedge
from lsat_ray.scoring.model import Model, passes
from lsat_ray.strategies import Derived, Gate, Strategy, WithSide

Read = Callable[[str, int], np.ndarray]
"""(row, tested period) -> its recorded scores float64 [N]."""


def measure(run: Run, seed: int, periods: Iterable[int]) -> None:
    """Compute the derived rows on tested periods and record them; what they are computed from is recorded already."""
    rows = [s for s in run.strategies[seed] if isinstance(s, Derived)]
    wanted = list(periods) if rows else []
    models = [steps.models(run, seed, t - 1) for t in range(run.tested[0], max(wanted, default=0) + 1)]

    @functools.cache
    def read(name: str, t: int) -> np.ndarray:
        return pd.read_parquet(run.folder.scores(name, seed, t))["score"].to_numpy(np.float64)

    for t in wanted:
        behind = models[: t - run.tested[0] + 1]
        for row in rows:
            name = digest(row, behind)
            if run.ledger.get(seed, row.name, t, "score", name):
                continue
            if isinstance(row, WithSide):
                (base,) = sources(row, behind[-1])
                score = _with_side(run, row, base, behind[0], t, read)
                steps.record_scores(run, seed, row.name, t, score, True, digest=name, adapters=list(base.adapters))
            elif isinstance(row, Gate):
                score, gate = _gated(run, row, behind, t)
                steps.record_scores(run, seed, row.name, t, score, True, digest=name, gate=gate)
            else:
                score, weights = _hedged(run, row, behind, t, read)
                steps.record_scores(run, seed, row.name, t, score, True, digest=name, weights=weights)


def sources(row: Strategy, models: Sequence[Model]) -> list[Model]:
    """Return the models of a period that a derived row is computed from: all that are served, or those of its base."""
    return [m for m in models if (m.strategy == row.base if isinstance(row, WithSide | Gate) else m.served)]


def digest(row: Strategy, behind: Sequence[Sequence[Model]]) -> str:
    """Return the SHA-256 of a derived row's name and of the models that it is computed from.

    Args:
        row: the derived row.
        behind: the models that answered on every tested period so far, the newest last.
    """
    parts = (row.name, [[m.digest for m in sources(row, models)] for models in behind])
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def slices(run: Run, row: Strategy, t: int) -> set[Slice]:
    """Return what a derived row reads of labels before it scores D_t."""
    tested = {Slice(s, "all") for s in run.tested if s < t}
    return tested | ({Slice(run.tested[0] - 1, "validation")} if isinstance(row, WithSide | Gate) else set())


def _hedged(
    run: Run, row: Strategy, behind: Sequence[Sequence[Model]], t: int, read: Read
) -> tuple[np.ndarray, dict[str, float]]:
    """Return the mixture's P(like) of D_t and its weights, by the log-losses on the tested periods before t."""
    numbered = list(enumerate(behind, start=run.tested[0]))
    probability = [{m.strategy: read(m.strategy, s) for m in sources(row, models)} for s, models in numbered]
    found = hedge(probability, [run.periods.rows(s).label for s, _ in numbered[:-1]])
    return found.mixture[-1], found.weights[-1]


def _gated(run: Run, row: Gate, behind: Sequence[Sequence[Model]], t: int) -> tuple[np.ndarray, dict[str, float]]:
    """Return P(like) of D_t under the gate, and facts about it: its penalty, and the mean share of the first adapter.

    It is fitted on every V_s up to t - 1, by the adapters of s, and on the tested periods behind, by those of s - 1: on
    rows that no adapter that scores them was trained on.
    """
    first = run.tested[0]
    base = {s: sources(row, models)[0] for s, models in enumerate(behind, start=first - 1)}
    known_rows = [(s, Slice(s, "validation")) for s in range(first - 1, t)]
    known_rows += [(s - 1, Slice(s, "all")) for s in range(first, t)]
    asked = [*known_rows, (t - 1, Slice(t, "all"))]
    known = steps.margins(run, [(base[s], at) for s, at in asked], t)
    table = side_table(run.periods, None)

    def read(parts: Sequence[tuple[int, Slice]]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        place = np.concatenate([run.periods.positions(*at) for _, at in parts])
        each = [[known[one.digest, at] for one in passes(base[s])] for s, at in parts]
        margin = [np.concatenate(m) for m in zip(*each, strict=True)]
        x = np.column_stack([*margin, *np.abs(margin), table[place]]) if row.features else np.empty((len(place), 0))
        return margin, x, place

    margin, x, place = read(known_rows)
    gate = fit_sample_gate(margin, x, run.periods.samples.label[place], place)
    margin, x, _ = read(asked[-1:])
    share = gate.share(x)
    facts = {"rows": float(len(place)), "pull": gate.pull, "share": float(share.mean()), "spread": float(share.std())}
    return gate.mixed(margin, x), facts


def _with_side(run: Run, row: WithSide, base: Model, opening: Sequence[Model], t: int, read: Read) -> np.ndarray:
    """Return P(like) of D_t by the head of the base's margin and the side features.

    It is fitted on what the base said of the tested periods behind, and of the validation split before the first of
    them. While these hold one class there is no head, and the row is its base.
    """
    first = run.tested[0]
    margin = np.full(len(run.periods.samples), np.nan)
    before = Slice(first - 1, "validation")
    for m in sources(row, opening):
        margin[run.periods.positions(*before)] = _logit(steps.combined(m, before, steps.margins(run, [(m, before)], t)))
    for s in range(first, t):
        margin[run.periods.span(s)] = _logit(read(row.base, s))
    known = np.isfinite(margin)
    margin[run.periods.span(t)] = _logit(read(row.base, t))
    if len(np.unique(run.periods.samples.label[known])) < 2:
        return read(row.base, t)
    return with_side(run.periods, margin, t - 1, row.side)


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability, CLIP, 1 - CLIP)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))
