"""The embedded stream with known truth: stable and short-lived preference, of everyone and of each user.

    logit = stable + now
    stable = positivity[user] + sum over the item's attributes of (quality + taste[user])
    now    = sum over the item's attributes of (trend[n] + interest[user, n])
    P(like) = noise + (1 - 2 noise) sigmoid(logit)

Trend and interest are stationary AR(1) processes in n, the position in the stream of samples; they know no periods. So
every cut of a stream has the same labels. Titles say the attributes in words; users and items arrive over time.
"""

from __future__ import annotations

import itertools

import numpy as np

from lsat_ray.config import SyntheticConfig
from lsat_ray.data.interactions import Interactions

WORDS: tuple[tuple[str, ...], ...] = (
    ("Dark", "Merry", "Quiet", "Wild", "Tender", "Strange", "Bitter", "Golden"),  # mood
    ("Island", "Desert", "City", "Space", "Forest", "Winter", "Harbour", "Mountain"),  # setting
    ("Comedy", "Western", "Mystery", "Romance", "Thriller", "Musical", "Drama", "Adventure"),  # genre
)
"""One word of each list makes a title; every word is an attribute."""

EPOCH = 1_577_836_800
"""2020-01-01 UTC: the stream's first second."""
MEAN_GAP = 600.0
"""Mean seconds between two events."""


def generate(config: SyntheticConfig, samples: int, history: int) -> Interactions:
    """Draw the stream: `config.warmup` samples, then `samples` samples.

    A user who arrives has `history` events at once, which are nobody's targets; every later event is one sample. So
    `windows` makes exactly `config.warmup + samples` samples. A user meets an item once while there are unmet ones.

    Args:
        config: knobs; `config.seed` fixes the stream.
        samples: samples after the warm-up.
        history: H, events before a user's first sample.

    Returns:
        Interactions with strictly increasing timestamps, the true P(like) of every event, noise included, and what the
        partial oracles would say (`interactions.ORACLES`).
    """
    streams = np.random.SeedSequence(config.seed).spawn(9)
    arrival_rng, event_rng, time_rng, item_rng, quality_rng, trend_rng, user_rng, label_rng, interest_rng = (
        np.random.default_rng(s) for s in streams
    )
    total = config.warmup + samples
    user_start = _arrivals(arrival_rng, config.users, config.new_users, config.warmup // 2, config.warmup, total)
    item_start = _arrivals(arrival_rng, config.items, config.new_items, 0, config.warmup, total)

    user, sample = _users(event_rng, user_start, total, history)
    item = _items(event_rng, user, np.searchsorted(item_start, sample, side="right"))
    words = _attributes(item_rng, config.items)
    columns = words + np.cumsum([0, *(len(w) for w in WORDS[:-1])])  # [I, G], index of each attribute
    attributes = sum(len(w) for w in WORDS)
    met = columns[item]  # [N, G]

    quality = config.quality * quality_rng.standard_normal(attributes)
    positivity = config.positivity * user_rng.standard_normal(config.users)
    taste = config.taste * user_rng.standard_normal((config.users, attributes))
    stable = positivity[user] + (quality[met] + taste[user[:, None], met]).sum(axis=1)
    trend = _trend(trend_rng, total, attributes, config.drift, config.half_life)
    interest = _interest(interest_rng, user, sample, attributes, config.interest, config.interest_half_life)
    now = (trend[sample[:, None], met] + np.take_along_axis(interest, met, axis=1)).sum(axis=1)
    probability = _expected(stable + now, 0.0, config.noise)
    gaps = 1 + time_rng.exponential(MEAN_GAP, len(user)).astype(np.int64)
    return Interactions(
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        label=(label_rng.random(len(user)) < probability).astype(np.uint8),
        timestamp=EPOCH + np.cumsum(gaps),
        user_ids=np.array([f"u{i:05d}" for i in range(config.users)]),
        item_ids=np.array([f"i{i:05d}" for i in range(config.items)]),
        titles=_titles(words),
        probability=probability,
        oracles=_oracles(config, stable, now, probability),
    )


def _oracles(config: SyntheticConfig, stable: np.ndarray, now: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return what one who knows half of the logit expects, and their best mixture [N, 3], as `interactions.ORACLES`.

    What is not known is drawn from its own (normal) law. The mixture is the paper's equation 3 with the one weight for
    the whole stream that has the least expected log-loss under the truth.
    """
    groups = len(WORDS)
    spread_now = np.sqrt(groups * (config.drift**2 + config.interest**2))
    spread_stable = np.sqrt(config.positivity**2 + groups * (config.quality**2 + config.taste**2))
    long = _expected(stable, spread_now, config.noise)
    short = _expected(now, spread_stable, config.noise)

    def loss(weight: float) -> float:
        mixed = np.clip(weight * long + (1 - weight) * short, 1e-12, 1 - 1e-12)
        return -float(np.mean(truth * np.log(mixed) + (1 - truth) * np.log(1 - mixed)))

    from scipy.optimize import minimize_scalar

    weight = float(minimize_scalar(loss, bounds=(0.0, 1.0), method="bounded").x)
    return np.stack([long, short, weight * long + (1 - weight) * short], axis=1)


def _expected(logit: np.ndarray, spread: float, noise: float) -> np.ndarray:
    """Return E[noise + (1 - 2 noise) sigmoid(logit + spread z)] over z ~ N(0, 1), [N].

    The integral is taken on a grid of logits (trapezoid, 8 standard deviations) and interpolated: below 1e-5 wrong.
    """
    liked = (1 + np.tanh(logit / 2)) / 2  # sigmoid
    if spread > 0:
        z = np.linspace(-8, 8, 513)
        weight = np.exp(-(z**2) / 2)
        grid = np.linspace(logit.min(), logit.max(), 2048)
        values = (1 + np.tanh((grid[:, None] + spread * z) / 2)) / 2 @ (weight / weight.sum())
        liked = np.interp(logit, grid, values)
    return noise + (1 - 2 * noise) * liked


def _arrivals(
    rng: np.random.Generator, count: int, late_share: float, settled: int, warmup: int, total: int
) -> np.ndarray:
    """Return sorted arrival positions in samples [count]: early ones up to `settled`, late ones during the periods."""
    late = min(round(count * late_share), count - 1)
    early = np.r_[0, rng.integers(0, settled + 1, count - late - 1)]
    return np.sort(np.r_[early, rng.integers(warmup, total, late)])


def _users(rng: np.random.Generator, start: np.ndarray, total: int, history: int) -> tuple[np.ndarray, np.ndarray]:
    """Return of every event its user and the sample that it is, or precedes when it opens a user's history."""
    arrived = np.searchsorted(start, np.arange(total), side="right")
    active = (rng.random(total) * arrived).astype(np.int64)
    sample = np.r_[np.repeat(start, history), np.arange(total)]
    user = np.r_[np.repeat(np.arange(len(start)), history), active]
    order = np.lexsort((np.r_[np.zeros(len(start) * history), np.ones(total)], sample))
    return user[order], sample[order]


def _items(rng: np.random.Generator, user: np.ndarray, arrived: np.ndarray, rounds: int = 50) -> np.ndarray:
    """Draw an arrived item for every event, again where the user has met it; give up where all are met."""
    item = (rng.random(len(user)) * arrived).astype(np.int64)
    for _ in range(rounds):
        pair = user * (int(arrived.max()) + 1) + item
        repeated = np.ones(len(pair), dtype=bool)
        repeated[np.unique(pair, return_index=True)[1]] = False
        if not repeated.any():
            break
        item[repeated] = (rng.random(int(repeated.sum())) * arrived[repeated]).astype(np.int64)
    return item


def _attributes(rng: np.random.Generator, items: int) -> np.ndarray:
    """Return the word of every item in every list [I, G]; a combination comes again when all have been used."""
    sizes = [len(w) for w in WORDS]
    combinations = int(np.prod(sizes))
    codes = np.concatenate([rng.permutation(combinations) for _ in range(-(-items // combinations))])[:items]
    return np.stack(np.unravel_index(codes, sizes), axis=1)


def _titles(words: np.ndarray) -> tuple[str, ...]:
    """Spell the attributes; a combination that comes again is a sequel (`Dark Island Comedy 2`)."""
    seen: dict[str, int] = {}
    titles = []
    for row in words.tolist():
        title = " ".join(group[word] for group, word in zip(WORDS, row, strict=True))
        seen[title] = seen.get(title, 0) + 1
        titles.append(title if seen[title] == 1 else f"{title} {seen[title]}")
    return tuple(titles)


def _trend(rng: np.random.Generator, samples: int, attributes: int, drift: float, half_life: float) -> np.ndarray:
    """Draw a stationary AR(1) [samples, A] with coefficient 0.5 ** (1 / half_life)."""
    rho = 0.5 ** (1 / half_life)
    shocks = drift * rng.standard_normal((samples, attributes))
    shocks[1:] *= np.sqrt(1 - rho**2)
    for before, now in itertools.pairwise(shocks):  # in place; scipy.signal takes a second to import
        now += rho * before
    return shocks


def _interest(
    rng: np.random.Generator, user: np.ndarray, sample: np.ndarray, attributes: int, interest: float, half_life: float
) -> np.ndarray:
    """Draw every user's own stationary AR(1) over samples, at the user's events only [N, A]; exact for any gaps."""
    out = interest * rng.standard_normal((len(user), attributes))
    order = np.argsort(user, kind="stable")
    first = np.r_[0, np.flatnonzero(np.diff(user[order])) + 1]
    rank = np.arange(len(user)) - np.repeat(first, np.diff(np.r_[first, len(user)]))
    for k in range(1, int(rank.max()) + 1):  # the k-th event of all users at once
        later = np.flatnonzero(rank == k)
        event, before = order[later], order[later - 1]
        rho = 0.5 ** ((sample[event] - sample[before]) / half_life)[:, None]
        out[event] = rho * out[before] + np.sqrt(1 - rho**2) * out[event]
    return out
