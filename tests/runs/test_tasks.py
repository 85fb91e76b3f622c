"""The book of tasks: order, dependencies, restarts."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsat_ray.config import Experiment
from lsat_ray.data.periods import Slice
from lsat_ray.runs.tasks import Fit, Score, TaskBook
from lsat_ray.scoring.model import Model
from lsat_ray.strategies import Setting
from lsat_ray.strategies.fine_tuning import FineTuning
from lsat_ray.strategies.graph import closure

SETTING = Setting("backbone", "data", Experiment(), 0)


def chain(length: int) -> list[Fit]:
    return [Fit(s) for s in closure([FineTuning(SETTING).spec(length)])]


def test_a_task_waits_for_what_it_needs() -> None:
    book = TaskBook()
    first, second = chain(2)
    book.submit([second, first], set())
    assert book.take(0) == first
    assert book.take(1) is None, "the warm start was handed out before its parent was done"
    book.done(first.key, "ok")
    assert book.take(1) == second


def test_what_is_in_the_store_counts_as_done() -> None:
    book = TaskBook()
    first, second = chain(2)
    book.submit([second], {first.key})
    assert book.take(0) == second


def test_submitting_twice_gives_a_task_once() -> None:
    book = TaskBook()
    (task,) = chain(1)
    book.submit([task], set())
    assert book.take(0) == task
    book.submit([task], set())
    assert book.take(1) is None


def test_a_restarted_session_gives_back_only_its_own() -> None:
    book = TaskBook()
    a = Score(Model("a", 1, "frozen"), Slice(1, "all"))
    b = Score(Model("b", 1, "frozen"), Slice(1, "all"))
    book.submit([a, b], set())
    assert (book.take(0), book.take(1)) == (a, b)
    book.give_back(0, "its worker died")
    assert book.take(0) == a
    assert book.take(2) is None


def test_a_task_that_kills_its_session_three_times_has_failed_and_the_others_go_on() -> None:
    """Failures were counted over the whole stream, by session: the third death of any kind ended the run."""
    book = TaskBook(tries=3, log="runs/a/train/session0.log")
    bad = Score(Model("bad", 1, "frozen"), Slice(1, "all"))
    good = Score(Model("good", 1, "frozen"), Slice(1, "all"))
    book.submit([bad, good], set())
    for _ in range(3):
        assert book.take(0) == bad
        book.give_back(0, "its worker died")
    assert book.entries[bad.key].result == (
        "scoring of period 1 all by bad: given up after 3 tries (its worker died); see runs/a/train/session0.log"
    )
    assert book.take(0) == good


def test_a_task_that_did_not_fit_is_given_back_without_a_try_and_steps_are_split_from_then_on() -> None:
    book = TaskBook(tries=1)
    first, second = chain(2)
    book.submit([first, second], set())
    assert book.take(0) == first
    book.split(0, 4)
    book.split(0, 2)  # the other rank, whose memory ran out too
    assert (book.micro_batches, book.counts()["waiting"]) == (4, 2)
    book.give_back(0, "its worker died")
    assert book.take(0) == first


def test_a_session_whose_answer_was_lost_gets_its_task_again_without_a_try() -> None:
    """A repeated call took a second task, and the first stayed running for ever."""
    book = TaskBook(tries=1)
    first, second = (Score(Model(n, 1, "frozen"), Slice(1, "all")) for n in "ab")
    book.submit([first, second], set())
    assert (book.take(0), book.take(0), book.take(1)) == (first, first, second)


def test_a_book_that_was_lost_takes_the_tasks_again_and_drops_what_it_does_not_know() -> None:
    book = TaskBook()
    (task,) = chain(1)
    book.done(task.key, "of the lost book")
    book.fail(task.key, "of the lost book")
    book.give_back(0, "its worker died")
    assert not book.knows([task.key])
    book.submit([task], set())
    assert book.take(0) == task


def test_a_failure_ends_the_wait_and_is_told() -> None:
    book = TaskBook()
    a, b = chain(2)
    book.submit([a, b], set())
    book.take(0)
    assert not book.finished([a.key, b.key])
    book.fail(a.key, "loss is nan")
    assert book.finished([a.key, b.key])
    assert book.entries[a.key].result == "loss is nan"


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["take", "done", "restart"])), max_size=80))
def test_under_any_interleaving_each_task_ends_once_and_parents_first(events: list[tuple[int, str]]) -> None:
    book, tasks = TaskBook(tries=100), chain(5)
    book.submit(tasks, set())
    held: dict[int, list[Fit]] = {0: [], 1: [], 2: []}
    finished: list[str] = []
    for session, event in [*events, *[(0, "restart"), (1, "restart"), (2, "restart")], *[(0, "take"), (0, "done")] * 5]:
        if event == "take" and not held[session] and (task := book.take(session)) is not None:
            assert isinstance(task, Fit)
            assert all(n in finished for n in task.needs)
            held[session].append(task)
        elif event == "done" and held[session]:
            done = held[session].pop()
            book.done(done.key, None)
            finished.append(done.key)
        elif event == "restart":
            book.give_back(session, "its worker died")
            held[session] = []
    assert finished == [t.key for t in tasks]


def test_a_score_task_is_named_by_pass_and_slice() -> None:
    a = Score(Model("a", 1, "frozen"), Slice(1, "all"))
    assert a.key != replace(a, slice=Slice(1, "train")).key
    assert a.key != replace(a, model=replace(a.model, weights=(0.5,))).key
    with pytest.raises(AttributeError):
        a.as_of = 2  # type: ignore[misc]
