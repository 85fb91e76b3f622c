"""Layouts in which several targets of one user share what they have in common.

`shared-history`: TALLRec's prompt; the history of the first of up to k successive targets is frozen for all of them,
computed once, and followed by k questions that cannot see each other. Every target's tokens and positions are those of
its own whole prompt with the frozen history, so k = 1 is the exact layout.

`stream`: items in time order, each followed by its answer (after DTI, arXiv 2503.01001):

    "title" ?⏎ Yes. "title" ?⏎ No. "title" ?⏎ ...

The title and the answer of an item are what later targets see; the question is seen by nobody else and is where the
target is scored, before its answer. The question sees the items of the target's own history and its title. A title and
its answer see only themselves. That is the price of an exact window: states of items do not depend on what came before
them, so nothing older than the history leaks through the layers (DTI's hidden-state leakage), all offsets are relative,
and a target scores the same alone and in a stream; but items meet only in the question's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np

from lsat_ray.config import PromptConfig
from lsat_ray.data.windows import Samples
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded

QUESTION = "?\n"
ANSWERS = ("No.", "Yes.")


class Prompts(Protocol):
    """What a layout needs of an encoder (`prompts.encode.Encoder`)."""

    config: PromptConfig
    titles: list[str]

    def pieces(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of texts, nothing added."""

    def prompt_ids(self, samples: Samples) -> list[list[int]]:
        """Return the token ids of each sample's prompt."""

    def shared_prefix(self, prompts: list[list[int]]) -> int:
        """Return how many tokens all prompts begin with."""


@dataclass
class _Builder:
    """Collects sequences token by token."""

    tokens: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    window: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=lambda: [0])
    answer: list[int] = field(default_factory=list)
    sequence: list[int] = field(default_factory=list)
    index: list[int] = field(default_factory=list)

    @property
    def here(self) -> int:
        """Tokens of the open sequence so far."""
        return len(self.tokens) - self.offsets[-1]

    def add(self, ids: list[int], position: int, segment: int, window: int) -> None:
        """Append tokens at consecutive positions."""
        self.tokens += ids
        self.position += range(position, position + len(ids))
        self.segment += [segment] * len(ids)
        self.window += [window] * len(ids)

    def read(self, index: int) -> None:
        """Read the answer of a sample at the last token."""
        self.answer.append(len(self.tokens) - 1)
        self.sequence.append(len(self.offsets) - 1)
        self.index.append(index)

    def close(self) -> None:
        """End the open sequence."""
        self.offsets.append(len(self.tokens))

    def encoded(self, samples: Samples, prefix: list[int]) -> Encoded:
        """Return what was collected."""
        return Encoded(
            prefix=np.array(prefix, dtype=np.int32),
            tokens=np.array(self.tokens, dtype=np.int32),
            offsets=np.array(self.offsets, dtype=np.int64),
            answer=np.array(self.answer, dtype=np.int64),
            sequence=np.array(self.sequence, dtype=np.int64),
            row=samples.row[self.index],
            label=samples.label[self.index],
            position=np.array(self.position, dtype=np.int32),
            segment=np.array(self.segment, dtype=np.int32),
            window=np.array(self.window, dtype=np.int32),
        )


def shared_history(encoder: Prompts, samples: Samples, targets: int | None = None) -> Encoded:
    """Encode up to k = `targets` (`prompt.targets`) successive targets of a user behind the history of the first.

    A group ends where a target's history would be more than k - 1 interactions old.
    """
    groups = list(successive(samples, targets or encoder.config.targets))
    leader = np.empty(len(samples), dtype=np.int64)
    for group in groups:
        leader[group] = group[0]
    frozen = replace(
        samples,
        history_item=samples.history_item[leader],
        history_label=samples.history_label[leader],
        history_timestamp=samples.history_timestamp[leader],
    )
    prompts = encoder.prompt_ids(frozen)
    prefix = encoder.shared_prefix(prompts)
    build = _Builder()
    for group in groups:
        members = [prompts[i] for i in group]
        shared = common(min(members), max(members))  # of all: the extremes differ first
        shared = max(prefix, min(shared, min(map(len, members)) - (len(members) > 1)))
        build.add(members[0][prefix:shared], 0, 0, 0)
        for number, (i, ids) in enumerate(zip(group, members, strict=True), start=1):
            build.add(ids[shared:], shared - prefix, number, 0)
            build.read(int(i))
        build.close()
    return replace(build.encoded(samples, prompts[0][:prefix]), window=None)


def successive(samples: Samples, size: int) -> Iterator[np.ndarray]:
    """Yield groups of at most `size` positions: one user's targets in time, at most size - 1 interactions apart.

    How many interactions lie between two targets is read off the shift between their histories.
    """
    order = np.lexsort((np.arange(len(samples)), samples.timestamp, samples.user))
    step = _steps(samples, order)
    groups: list[list[int]] = []
    age = 0
    for place, i in enumerate(order.tolist()):
        age += int(step[place])
        if groups and len(groups[-1]) < size and age < size and samples.user[groups[-1][0]] == samples.user[i]:
            groups[-1].append(i)
        else:
            groups.append([i])
            age = 0
    for group in sorted(groups, key=min):
        yield np.array(group, dtype=np.int64)


def _steps(samples: Samples, order: np.ndarray) -> np.ndarray:
    """Return int [N], interactions between a target and the one before it in `order`; a great number when unknown."""
    columns = [c[order] for c in (samples.history_item, samples.history_label, samples.history_timestamp)]
    length = columns[0].shape[1]
    step = np.full(len(order), 1 << 30, dtype=np.int64)
    for shift in reversed(range(length)):
        same = np.ones(max(len(order) - 1, 0), dtype=bool)
        for column in columns:
            same &= (column[1:, : length - shift] == column[:-1, shift:]).all(axis=1)
        step[1:][same] = shift
    return step


class _Event(NamedTuple):
    """One interaction of a history."""

    item: int
    label: int
    timestamp: int


@dataclass
class _Chunk:
    """One sequence of the stream layout while it grows."""

    events: list[_Event] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """Index in the sequence of each event's first token."""
    places: list[int] = field(default_factory=list)
    """Position id of each event's first token."""
    place: int = 0
    """Position id of the next event."""
    targets: int = 0


class _Plan(NamedTuple):
    """What to do for one target."""

    sample: int
    """Position in the samples."""
    fresh: bool
    """Open a new sequence."""
    missing: list[_Event]
    """Events of the history that the sequence does not hold yet."""
    joins: bool
    """The target's own event becomes history of the next one."""


def stream(encoder: Prompts, samples: Samples) -> Encoded:
    """Encode a user's targets as runs of items and answers, `prompt.targets` targets a sequence.

    Histories are the samples' own: events that are nobody's target are filled in, a target that the next history does
    not hold (ties) is kept out of it, and a sequence ends where histories do not join.

    Raises:
        LsatError: when a title does not fit into `prompt.max_tokens`.
    """
    title, answers, question = _stream_pieces(encoder, samples)
    build, chunk = _Builder(), _Chunk()
    limit = encoder.config.max_tokens

    def add_event(event: _Event) -> None:
        ids = title[event.item]
        begin = build.here
        chunk.starts.append(begin)
        chunk.events.append(event)
        chunk.places.append(chunk.place)
        build.add(ids, chunk.place, 0, begin)
        add_answer(event, begin)

    def add_answer(event: _Event, begin: int) -> None:
        ids = answers[event.label]
        at = chunk.place + len(title[event.item])
        build.add(ids, at, 0, begin)
        chunk.place = at + len(ids)

    for plan in _stream_plans(samples, encoder.config.targets):
        if plan.fresh and chunk.targets:
            build.close()
        if plan.fresh:
            chunk = _Chunk()
        for event in plan.missing:
            add_event(event)
        i = plan.sample
        event = _Event(int(samples.item[i]), int(samples.label[i]), int(samples.timestamp[i]))
        ids = title[event.item]
        room = limit - len(ids) - len(question)
        if room < 0:
            raise LsatError(f"prompt.max_tokens: the title of item {event.item} needs {limit - room} tokens; raise it")
        chunk.targets += 1
        held = int((samples.history_item[i] >= 0).sum())
        first = len(chunk.events) - held
        while first < len(chunk.events) and chunk.place - chunk.places[first] > room:
            first += 1
        begin = build.here
        window = chunk.starts[first] if first < len(chunk.events) else begin
        build.add(ids, chunk.place, 0 if plan.joins else chunk.targets, begin)
        build.add(question, chunk.place + len(ids), chunk.targets, window)
        build.read(i)
        if plan.joins:
            chunk.starts.append(begin)
            chunk.events.append(event)
            chunk.places.append(chunk.place)
            add_answer(event, begin)
    build.close()
    return build.encoded(samples, [])


def _stream_pieces(encoder: Prompts, samples: Samples) -> tuple[dict[int, list[int]], list[list[int]], list[int]]:
    """Return the tokens of every title that occurs, of the two answers, and of the question."""
    items = np.unique(np.concatenate([samples.item, samples.history_item.ravel()]))
    items = items[items >= 0]
    titles = encoder.pieces([f'"{encoder.titles[i]}"' for i in items])
    no, yes, question = encoder.pieces([*ANSWERS, QUESTION])
    return dict(zip(items.tolist(), titles, strict=True)), [no, yes], question


def _stream_plans(samples: Samples, size: int) -> Iterator[_Plan]:
    """Yield the targets user by user, in time."""
    order = np.lexsort((np.arange(len(samples)), samples.timestamp, samples.user)).tolist()
    histories = _histories(samples)
    events: list[_Event] = []
    waiting: tuple[int, bool, list[_Event]] | None = None
    count = 0
    for place, i in enumerate(order):
        history = histories[i]
        joined = waiting is not None and samples.user[order[place - 1]] == samples.user[i] and count < size
        joins, known = False, 0
        if joined and waiting is not None:
            before = waiting[0]
            own = _Event(int(samples.item[before]), int(samples.label[before]), int(samples.timestamp[before]))
            known = _overlap([*events, own], history)
            joins = known > 0
            known = known or _overlap(events, history)
        if waiting is not None:
            yield _Plan(*waiting, joins)
            if joins:
                events.append(own)
        fresh = known == 0
        if fresh:
            events, count = [], 0
        missing = history[known:]
        events = [*events, *missing]
        waiting = (i, fresh, missing)
        count += 1
    if waiting is not None:
        yield _Plan(*waiting, False)


def _histories(samples: Samples) -> list[list[_Event]]:
    columns = (samples.history_item.tolist(), samples.history_label.tolist(), samples.history_timestamp.tolist())
    return [[_Event(*event) for event in zip(*row, strict=True) if event[0] >= 0] for row in zip(*columns, strict=True)]


def _overlap(events: list[_Event], history: list[_Event]) -> int:
    """Return how many first events of a history are the last of `events`, in order."""
    for known in range(min(len(history), len(events)), 0, -1):
        if events[-known:] == history[:known]:
            return known
    return 0


def common(a: list[int], b: list[int]) -> int:
    """Return the length of the longest common beginning."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
