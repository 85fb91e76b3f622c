"""One user, many candidates: what the prompts share is computed once per pass, and each scores as it would alone.

In TALLRec's prompt (`exact`, `shared-history`) all candidates of a user share the preamble, the history and the
question's beginning: these tokens become the prefix of one encoding, whose keys and values every candidate reads. In
the `stream` layout up to `CHUNK` candidates follow the history in a sequence and cannot see each other. Questions of
different users, one candidate each, share the preamble and one batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from lsat_ray.data.windows import Samples
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded, join, token_budget_batches
from lsat_ray.prompts.encode import Encoder
from lsat_ray.prompts.layouts import QUESTION, common, stream
from lsat_ray.prompts.tallrec import history_text, preamble, sanitise, target_text

CHUNK = 32
"""Candidates that share a sequence of the stream layout."""
KEYS = 4
"""Keys that a batch may read, prefix included, as a multiple of the tokens that it may compute."""

Work = tuple[Encoded, np.ndarray]
"""One forward pass: an encoding, and which of its sequences."""


class Event(NamedTuple):
    """One interaction of a user."""

    title: str
    liked: bool


@dataclass(frozen=True)
class Ask:
    """A user's history and the candidates to score for it."""

    history: tuple[Event, ...]
    """Oldest first; may be empty."""
    candidates: tuple[str, ...]
    """Titles, one at least."""
    model: str | None = None
    """Name of the model that shall answer (None: the default)."""
    user: str | None = None
    """Who asks, for the share of users that a candidate model answers."""


class Refused(LsatError):
    """A question that cannot be answered, in the words of who asked it."""

    def __init__(self, field: str, what: str, remedy: str, ask: int = 0) -> None:
        super().__init__(f"{field}: {what}; {remedy}")
        self.field, self.what, self.remedy = field, what, remedy
        self.ask = ask
        """Which of the asks of one call."""


@dataclass(frozen=True)
class Prepared:
    """An ask in tokens: what is scored in passes of its own, and what can be scored together with other asks."""

    used: np.ndarray
    """int64 [N], events of the history in the prompt of each candidate."""
    tokens: int
    """Tokens to compute, prefixes included."""
    own: list[Encoded] = field(default_factory=list)
    """Candidates that share a history; `row` is the candidate's place in the ask."""
    ids: list[tuple[int, list[int]]] = field(default_factory=list)
    """(candidate, whole prompt) of those that share the preamble only."""
    joint: list[Encoded] = field(default_factory=list)
    """Encodings without a prefix, which `join` puts together with others."""


def prepare(encoder: Encoder, ask: Ask) -> Prepared:
    """Encode an ask in the deployment's layout; the oldest events go where a prompt is too long.

    Args:
        encoder: tokenizer and prompt; its titles are not read.
        ask: titles are untrusted and sanitised here.

    Raises:
        Refused: when a candidate does not fit, or nothing of a history fits beside it.
    """
    made = _stream(encoder, ask) if encoder.config.layout == "stream" else _tallrec(encoder, ask)
    if ask.history and (made.used == 0).any():
        what = f"none of its {len(ask.history)} events fits into the prompt beside {_name(int(made.used.argmin()))}"
        raise Refused("history", what, "send shorter titles, or an empty history for an answer without one")
    return made


def assemble(encoder: Encoder, several: Sequence[Prepared], batch_tokens: int) -> list[Work]:
    """Return the passes that score all candidates of several asks; `row` numbers the candidates, ask after ask.

    Args:
        encoder: that `prepare` used.
        several: asks.
        batch_tokens: most padded tokens in a pass; a pass reads at most `KEYS` times as many keys.
    """
    start = np.cumsum([0, *(len(p.used) for p in several)])
    encodings = [
        replace(encoded, row=encoded.row + begin) for begin, p in zip(start, several, strict=False) for encoded in p.own
    ]
    alone = [(begin + place, ids) for begin, p in zip(start, several, strict=False) for place, ids in p.ids]
    if alone:
        shared = encoder.shared_prefix([ids for _, ids in alone])
        encodings.append(_rows([ids for _, ids in alone], shared, [row for row, _ in alone]))
    joint = [replace(e, row=e.row + begin) for begin, p in zip(start, several, strict=False) for e in p.joint]
    if joint:
        encodings.append(join(joint))
    return [(encoded, group) for encoded in encodings for group in _groups(encoded, batch_tokens)]


def _groups(encoded: Encoded, budget: int) -> list[np.ndarray]:
    longest = int(encoded.lengths.max())
    rows = max(1, KEYS * budget // (len(encoded.prefix) + longest))
    return token_budget_batches(encoded, min(budget, rows * longest))


def _tallrec(encoder: Encoder, ask: Ask) -> Prepared:
    prompts, used = _prompts(encoder, ask)
    made = Prepared(used, 0)
    tokens = 0
    for events in np.unique(used):
        members = np.flatnonzero(used == events).tolist()
        ids = [prompts[i] for i in members]
        if len(ids) == 1:
            made.ids.append((members[0], ids[0]))
            tokens += len(ids[0])
            continue
        shared = min(common(min(ids), max(ids)), min(map(len, ids)) - 1)  # of all: the extremes differ first
        made.own.append(_rows(ids, shared, members))
        tokens += shared + len(made.own[-1].tokens)
    return replace(made, tokens=tokens)


def _prompts(encoder: Encoder, ask: Ask) -> tuple[list[list[int]], np.ndarray]:
    """Return the whole prompt of each candidate and how many events of the history it holds, the newest ones."""
    word, limit = encoder.config.item_word, encoder.config.max_tokens
    titles = [sanitise(event.title) for event in ask.history]
    liked = np.array([event.liked for event in ask.history], dtype=bool)
    tails = [target_text(sanitise(title), word) for title in ask.candidates]
    prompts: list[list[int]] = [[] for _ in tails]
    used = np.full(len(tails), -1, dtype=np.int64)
    for skip in range(len(titles) + 1):
        missing = np.flatnonzero(used < 0).tolist()
        if not missing:
            break
        kept = np.arange(skip, len(titles))
        head = preamble(word) + history_text(titles, kept, liked[skip:])
        for i, ids in zip(missing, _joined(encoder, head, [tails[i] for i in missing]), strict=True):
            if len(ids) <= limit:
                prompts[i], used[i] = ids, len(kept)
    if (used < 0).any():
        raise _too_long(ask, int(np.flatnonzero(used < 0)[0]))
    return prompts, used


def _joined(encoder: Encoder, head: str, tails: list[str]) -> list[list[int]]:
    """Return the token ids of `head + tail` for each tail, the head tokenised once where that gives the same ids.

    Tokenised apart is not tokenised together, unless no token crosses the cut. The text around the cut is fixed (the
    line break before `Whether the user will like the target`), so that one whole prompt shows it for all.
    """
    opening = [] if encoder.tokenizer.bos_token_id is None else [encoder.tokenizer.bos_token_id]
    if len(tails) > 2:
        whole = encoder.pieces([head + tails[0]])[0]
        for cut in (len(head), len(head) - 1):  # behind the line break, or before it
            first, *rest = encoder.pieces([head[:cut], *(head[cut:] + tail for tail in tails)])
            if first + rest[0] == whole:
                return [opening + first + ids for ids in rest]
    return [opening + ids for ids in encoder.pieces([head + tail for tail in tails])]


def _rows(prompts: Sequence[list[int]], shared: int, rows: Iterable[int]) -> Encoded:
    """Return one sequence per prompt behind their first `shared` tokens."""
    offsets = np.cumsum([0, *(len(ids) - shared for ids in prompts)])
    count = len(prompts)
    return Encoded(
        prefix=np.array(prompts[0][:shared], dtype=np.int32),
        tokens=np.array([t for ids in prompts for t in ids[shared:]], dtype=np.int32),
        offsets=offsets,
        answer=offsets[1:] - 1,
        sequence=np.arange(count, dtype=np.int64),
        row=np.fromiter(rows, dtype=np.int64, count=count),
        label=np.zeros(count, dtype=np.uint8),
    )


def _stream(encoder: Encoder, ask: Ask) -> Prepared:
    limit, held, count = encoder.config.max_tokens, len(ask.history), len(ask.candidates)
    *titles, question = encoder.pieces([*(f'"{sanitise(title)}"' for title in ask.candidates), QUESTION])
    for i, ids in enumerate(titles):
        if len(ids) + len(question) > limit:
            raise _too_long(ask, i)
    twin = encoder.with_titles([*(event.title for event in ask.history), *ask.candidates])
    twin.config = encoder.config.model_copy(update={"targets": CHUNK})
    encoded = stream(twin, _samples(ask))
    used = np.empty(count, dtype=np.int64)
    assert encoded.segment is not None and encoded.window is not None
    place = np.arange(len(encoded.tokens)) - np.repeat(encoded.offsets[:-1], encoded.lengths)
    begins = np.flatnonzero((encoded.segment == 0) & (encoded.window == place))  # of titles in the history
    for answer, sequence, row in zip(encoded.answer, encoded.sequence, encoded.row, strict=True):
        first = encoded.offsets[sequence] + encoded.window[answer]
        used[row] = np.count_nonzero((begins >= first) & (begins < answer))
    return Prepared(np.minimum(used, held), len(encoded.tokens), joint=[encoded])


def _samples(ask: Ask) -> Samples:
    """Return the candidates as samples of one user; items are numbered by place, the history first."""
    held, count = len(ask.history), len(ask.candidates)

    def tiled(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, (count, held))

    return Samples(
        row=np.arange(count, dtype=np.int64),
        user=np.zeros(count, dtype=np.int32),
        item=np.arange(held, held + count, dtype=np.int32),
        label=np.zeros(count, dtype=np.uint8),
        timestamp=np.ones(count, dtype=np.int64),
        history_item=tiled(np.arange(held, dtype=np.int32)),
        history_label=tiled(np.array([event.liked for event in ask.history], dtype=np.uint8)),
        history_timestamp=tiled(np.zeros(held, dtype=np.int64)),
    )


def _too_long(ask: Ask, place: int) -> Refused:
    what = f"the title of {len(ask.candidates[place])} characters does not fit into the prompt"
    return Refused(_name(place), what, "send a shorter title")


def _name(place: int) -> str:
    """Name a candidate by its place in the request."""
    return f"candidates.{place}"


def twin(encoder: Encoder) -> Encoder:
    """Return a copy with a tokenizer of its own: one tokenizer is not safe on two threads."""
    other = copy.copy(encoder)
    other.tokenizer = copy.deepcopy(encoder.tokenizer)
    return other
