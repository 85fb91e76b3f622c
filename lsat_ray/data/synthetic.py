"""The embedded stream with known truth: stable tastes, a trend that drifts, newcomers, titles that say it in words.

    logit = positivity[user] + sum over the item's attributes of (quality + trend[period] + taste[user])
    P(like) = noise + (1 - 2 noise) sigmoid(logit)

The trend is an AR(1) over periods with stationary standard deviation `drift`; it stands still inside a period.
"""

from __future__ import annotations

import numpy as np

from lsat_ray.config import SyntheticConfig
from lsat_ray.data.interactions import Interactions
from lsat_ray.errors import LsatError

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


def generate(config: SyntheticConfig, periods: int, samples: int, history: int) -> Interactions:
    """Draw the stream: `config.warmup` samples, then `samples` samples in `periods` periods of equal count.

    A user who arrives has `history` events at once, which are nobody's targets; every later event is one sample. So
    `windows` makes exactly `config.warmup + samples` samples. A user meets an item once while there are unmet ones.

    Args:
        config: knobs; `config.seed` fixes the stream.
        periods: T, periods after the warm-up.
        samples: samples of all T periods together.
        history: H, events before a user's first sample.

    Returns:
        Interactions with strictly increasing timestamps and the true P(like) of every event, noise included.

    Raises:
        LsatError: when there are fewer samples than periods.
    """
    if samples < periods:
        raise LsatError(f"data.keep_last: {samples} samples cannot fill {periods} periods; raise it")
    arrival_rng, event_rng, time_rng, item_rng, quality_rng, trend_rng, user_rng, label_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence(config.seed).spawn(8)
    )
    total = config.warmup + samples
    user_start = _arrivals(arrival_rng, config.users, config.new_users, config.warmup // 2, config.warmup, total)
    item_start = _arrivals(arrival_rng, config.items, config.new_items, 0, config.warmup, total)

    user, sample = _users(event_rng, user_start, total, history)
    item = _items(event_rng, user, np.searchsorted(item_start, sample, side="right"))
    words = _attributes(item_rng, config.items)
    columns = words + np.cumsum([0, *(len(w) for w in WORDS[:-1])])  # [I, G], index of each attribute
    attributes = sum(len(w) for w in WORDS)

    period = _period(sample, config.warmup, samples, periods)
    quality = config.quality * quality_rng.standard_normal(attributes)
    trend = _trend(trend_rng, int(period.max()) + 1, attributes, config.drift, config.half_life)
    positivity = config.positivity * user_rng.standard_normal(config.users)
    taste = config.taste * user_rng.standard_normal((config.users, attributes))
    met = columns[item]  # [N, G]
    effect = quality[met] + trend[period[:, None], met] + taste[user[:, None], met]
    logit = positivity[user] + effect.sum(axis=1)
    probability = config.noise + (1 - 2 * config.noise) * (1 + np.tanh(logit / 2)) / 2  # sigmoid
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
    )


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


def _period(sample: np.ndarray, warmup: int, samples: int, periods: int) -> np.ndarray:
    """Return the index of every event's period, 0 the earliest; the warm-up is cut into periods of the same length."""
    borders = [samples * t // periods for t in range(1, periods)]
    later = np.searchsorted(borders, sample - warmup, side="right")
    before = -(-(warmup - sample) * periods // samples)  # ceiling: periods back from the first border
    period = np.where(sample < warmup, -before, later)
    return period - period.min()


def _trend(rng: np.random.Generator, periods: int, attributes: int, drift: float, half_life: float) -> np.ndarray:
    """Draw the stationary AR(1) [P, A] with coefficient 0.5 ** (1 / half_life)."""
    rho = 0.5 ** (1 / half_life)
    shocks = drift * rng.standard_normal((periods, attributes))
    trend = shocks.copy()
    for t in range(1, periods):
        trend[t] = rho * trend[t - 1] + np.sqrt(1 - rho**2) * shocks[t]
    return trend
