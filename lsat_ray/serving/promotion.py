"""When to promote a candidate: its prequential log-loss is lower, with the interval over users that the study uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from lsat_ray.errors import LsatError
from lsat_ray.evaluation import resampling
from lsat_ray.evaluation.significance import ALPHA, RESAMPLES, Runs, short
from lsat_ray.scoring.hedge import CLIP

_CHUNK = 2048  # draws at a time


@dataclass(frozen=True)
class Verdict:
    """Log-loss of the champion minus that of the candidate on what came after each was made: positive is better."""

    gain: float
    """Mean over the tested periods (and seeds), nats per sample."""
    low: float
    """Percentile interval of a paired bootstrap over users, see `evaluation.resampling`."""
    high: float
    periods: int
    users: int

    @property
    def better(self) -> bool:
        """Whether the candidate is better and the interval is without zero."""
        return self.low > 0

    def words(self) -> str:
        """Say it in one line."""
        span = f"[{short(self.low, sign=True)}, {short(self.high, sign=True)}]"
        word = "better" if self.better else "worse" if self.high < 0 else "no difference"
        where = f"{self.periods} tested periods, {self.users} users"
        return f"{word}: prequential log-loss lower by {short(self.gain, sign=True)} {span} ({where})"


def judge(
    champion: Runs, candidate: Runs, resamples: int = RESAMPLES, seed: int = 0, level: float = 1 - ALPHA
) -> Verdict:
    """Compare the prequential log-loss of two models: every period was scored by what was made before it.

    All rows of a user, in all periods, stay together in a draw; a period counts as much as another.

    Args:
        champion: P(like) of what answers now, by seed and tested period.
        candidate: P(like) of what is on trial, on the same samples.
        resamples: draws of users.
        seed: of the draws.
        level: of the interval.

    Raises:
        LsatError: when they share no period, scored different samples, or a score is no probability.
    """
    keys = sorted(champion.keys() & candidate.keys())
    if not keys:
        raise LsatError("promote: the two share no tested period; let the replay score both")
    gains = []
    for key in keys:
        a, b = champion[key], candidate[key]
        if not np.array_equal(a.row, b.row) or not np.array_equal(a.label, b.label):
            raise LsatError(f"promote: period {key.period}: the two scored different samples; score them again")
        gains.append(_loss(a.score, a.label) - _loss(b.score, b.label))
    units = resampling.grouped([champion[key].user for key in keys], seed)
    count = 1 + max(int(unit.max()) for unit in units)
    total = np.stack([np.bincount(u, g, minlength=count) for u, g in zip(units, gains, strict=True)])
    rows = np.stack([np.bincount(u, minlength=count) for u in units]).astype(np.float64)
    drawn, spread = resampling.user_draws(count, resamples, seed), []
    for begin in range(0, resamples, _CHUNK):
        weight = drawn[:, begin : begin + _CHUNK].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (total @ weight) / (rows @ weight)  # [periods, draws], NaN where a period has no drawn user
        known = ~np.isnan(means)
        spread.append(np.nansum(means, axis=0)[known.any(axis=0)] / known.sum(axis=0)[known.any(axis=0)])
    low, high = np.quantile(np.concatenate(spread), [(1 - level) / 2, (1 + level) / 2])
    users = len(np.unique(np.concatenate([champion[key].user for key in keys])))
    gain = float(np.mean([g.mean() for g in gains]))
    return Verdict(gain, float(low), float(high), len({key.period for key in keys}), users)


def prequential(records: Iterable[dict[str, Any]], names: Sequence[str]) -> tuple[dict[str, float], int]:
    """Return the mean log-loss of models over the tested periods that all of them have, and how many periods these are.

    It is what `judge` compares: a period (under a seed) counts as much as another.

    Args:
        records: of the run's ledger; a `score` record says how a strategy did on a period after its model was made.
        names: of the strategies.
    """
    found: dict[str, dict[tuple[int, int], float]] = {name: {} for name in names}
    for record in records:
        name, loss = record.get("strategy"), record.get("log_loss")
        if record.get("stage") == "score" and name in found and loss is not None and isfinite(loss):
            found[name][record["seed"], record["period"]] = loss
    shared = set.intersection(*(set(losses) for losses in found.values())) if found else set()
    if not shared:
        return {}, 0
    means = {name: sum(losses[key] for key in shared) / len(shared) for name, losses in found.items()}
    return means, len({period for _, period in shared})


def _loss(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return -ln P(label) of each row."""
    values = np.asarray(probability, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise LsatError("promote: a score is no P(like); a model that is not calibrated cannot be compared by log-loss")
    values = np.clip(values, CLIP, 1.0 - CLIP)
    return -np.log(np.where(np.asarray(label) == 1, values, 1.0 - values))
