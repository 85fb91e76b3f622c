"""Bodies of the HTTP endpoint, their limits, and errors that name the field and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from lsat_ray.data.windows import Samples
from lsat_ray.scoring.recommender import Model

MAX_TITLE = 500
"""Characters of a title."""
MAX_HISTORY = 200
"""Events of a history in any deployment; a deployment's own limit is `data.history`."""
MAX_REQUESTS = 64
"""Questions in a list."""
MAX_BODY = 1_000_000
"""Bytes of a body."""


class Event(BaseModel):
    """One interaction of the user."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str = Field(min_length=1, max_length=MAX_TITLE)
    liked: StrictBool


class Question(BaseModel):
    """Will this user like the target?"""

    model_config = ConfigDict(extra="forbid", frozen=True)
    strategy: str | None = Field(None, max_length=100, description="Served model (the first when left out).")
    history: list[Event] = Field(max_length=MAX_HISTORY, description="Oldest first; may be empty.")
    target: str = Field(min_length=1, max_length=MAX_TITLE, description="Title of the item.")


class ScoreBody(BaseModel):
    """One question, or several under `requests`, which are all answered by the same version."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    strategy: str | None = Field(None, max_length=100)
    history: list[Event] | None = Field(None, max_length=MAX_HISTORY)
    target: str | None = Field(None, min_length=1, max_length=MAX_TITLE)
    requests: list[Question] | None = Field(None, min_length=1, max_length=MAX_REQUESTS)

    @model_validator(mode="after")
    def _one_form(self) -> ScoreBody:
        single = self.history is not None and self.target is not None
        if self.requests is None and not single:
            missing = [name for name in ("history", "target") if getattr(self, name) is None]
            raise ValueError(f"{' and '.join(missing)} missing: send history and target, or a list under requests")
        if self.requests is not None and not (self.history is None and self.target is None and self.strategy is None):
            raise ValueError("requests stands alone: move strategy, history and target into its elements")
        return self

    def questions(self) -> list[Question]:
        """Return the questions of either form."""
        if self.requests is not None:
            return self.requests
        return [Question(strategy=self.strategy, history=self.history or [], target=self.target or "")]


class Answer(BaseModel):
    """P(like), and the model that gave it."""

    probability: float
    strategy: str
    period: int
    """Period after which the model was made."""
    digest: str
    """SHA-256 of the model's fields."""
    version: int
    """Publish that brought it."""


class Answers(BaseModel):
    """Answers to `requests`, in their order."""

    answers: list[Answer]


class ServedModel(BaseModel):
    """One served model."""

    strategy: str
    period: int
    digest: str
    merge: str
    adapters: list[str]
    weights: list[float]

    @staticmethod
    def of(model: Model, name: str) -> ServedModel:
        """Describe a model under the name that it is asked by."""
        return ServedModel(
            strategy=name,
            period=model.period,
            digest=model.digest,
            merge=model.merge,
            adapters=list(model.adapters),
            weights=list(model.weights),
        )


class ServedModels(BaseModel):
    """Everything that is served; the first model answers where no strategy is named."""

    version: int
    models: list[ServedModel]


def samples_of(questions: list[Question]) -> tuple[list[str], Samples]:
    """Return (titles, samples) of questions: items are numbered within the request, each question is its own user.

    Histories are padded on the left with items of -1 to the longest.
    """
    number: dict[str, int] = {}
    longest = max((len(q.history) for q in questions), default=0)
    count = len(questions)
    items = np.full((count, longest), -1, dtype=np.int32)
    liked = np.zeros((count, longest), dtype=np.uint8)
    target = np.zeros(count, dtype=np.int32)
    for i, question in enumerate(questions):
        start = longest - len(question.history)
        for j, event in enumerate(question.history, start):
            items[i, j] = number.setdefault(event.title, len(number))
            liked[i, j] = event.liked
        target[i] = number.setdefault(question.target, len(number))
    samples = Samples(
        row=np.arange(count, dtype=np.int64),
        user=np.arange(count, dtype=np.int32),
        item=target,
        label=np.zeros(count, dtype=np.uint8),
        timestamp=np.zeros(count, dtype=np.int64),
        history_item=items,
        history_label=liked,
        history_timestamp=np.zeros((count, longest), dtype=np.int64),
    )
    return list(number), samples


def problem(field: str, what: str, remedy: str) -> dict[str, str]:
    """Return one entry of an error's `detail`."""
    return {"field": field, "problem": what, "remedy": remedy}


def explain(errors: Iterable[Any]) -> list[dict[str, str]]:
    """Turn pydantic's errors into entries of (field, problem, remedy)."""
    return [_explain(e) for e in errors]


def _explain(error: Any) -> dict[str, str]:
    path = [str(part) for part in error["loc"] if part != "body"]
    field, kind, limits = ".".join(path) or "body", error["type"], error.get("ctx", {})
    message = error["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return problem("body", f"not JSON: {limits.get('error', message)}", "send a JSON object")
    if kind == "extra_forbidden":
        known = _fields(path)
        near = difflib.get_close_matches(path[-1], known, n=1)
        return problem(field, "unknown field", f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")
    if kind == "missing":
        if field == "body":
            return problem(field, "no body", "send a JSON object with history and target, or requests")
        return problem(field, "missing", f"add {path[-1]}")
    if kind == "too_long":
        return problem(field, message, f"send at most {limits['max_length']}")
    if kind == "string_too_long":
        return problem(field, message, f"shorten it to {limits['max_length']} characters")
    if kind in ("string_too_short", "too_short"):
        return problem(field, "empty", "give at least one")
    if kind == "value_error":
        what, _, remedy = message.partition(": ")
        return problem(field, what, remedy)
    return problem(field, message, f"send {_TYPES.get(kind, 'the type that /docs shows')}")


_TYPES = {
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "model_attributes_type": "a JSON object",
    "dict_type": "a JSON object",
    "string_unicode": "valid UTF-8 text",
}


def _fields(path: list[str]) -> list[str]:
    """Return the fields that are known where an unknown one was met."""
    parents = [part for part in path[:-1] if not part.isdigit()]
    model: type[BaseModel] = ScoreBody
    if parents:
        model = Event if parents[-1] == "history" else Question
    return list(model.model_fields)
