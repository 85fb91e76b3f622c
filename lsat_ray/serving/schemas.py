"""Bodies of the HTTP endpoint, their limits, and errors that name the field and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StrictBool, StringConstraints, model_validator

from lsat_ray.report.reader import RunReader
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.prefix import Ask
from lsat_ray.scoring.prefix import Event as PastEvent
from lsat_ray.scoring.served import Served, past
from lsat_ray.serving.desk import Result

MAX_TITLE = 500
"""Characters of a title."""
MAX_HISTORY = 200
"""Events of a history in any deployment; a deployment's own limit is `data.history`."""
MAX_REQUESTS = 64
"""Questions in a list."""
MAX_CANDIDATES = 1000
"""Candidates of a ranking."""
MAX_BODY = 4_000_000
"""Bytes of a body."""

Title = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TITLE)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class Event(BaseModel):
    """One interaction of the user."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: Title
    liked: StrictBool


History = Annotated[list[Event], Field(max_length=MAX_HISTORY, description="Oldest first; may be empty.")]


class Who(BaseModel):
    """What every question may say besides."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: Name | None = Field(
        None,
        validation_alias=AliasChoices("model", "strategy"),
        description="Served model (the default when left out).",
    )
    user: Name | None = Field(None, description="Any stable name: it decides who meets a model on trial.")

    def ask(self, history: list[Event], candidates: list[str]) -> Ask:
        """Return the question as the scorer reads it."""
        past = tuple(PastEvent(event.title, event.liked) for event in history)
        return Ask(past, tuple(candidates), self.model, self.user)


class Question(Who):
    """Will this user like the target?"""

    history: History
    target: Title = Field(description="Title of the item.")


class ScoreBody(Who):
    """One question, or several under `requests`, which are all answered by the same version."""

    history: History | None = None
    target: Title | None = None
    requests: list[Question] | None = Field(None, min_length=1, max_length=MAX_REQUESTS)

    @model_validator(mode="after")
    def _one_form(self) -> ScoreBody:
        missing = [name for name in ("history", "target") if getattr(self, name) is None]
        if self.requests is None and missing:
            raise ValueError(f"{' and '.join(missing)} missing: send history and target, or a list under requests")
        if self.requests is not None and any(
            getattr(self, n) is not None for n in ("history", "target", *Who.model_fields)
        ):
            raise ValueError("requests stands alone: move model, user, history and target into its elements")
        return self

    def asks(self) -> list[Ask]:
        """Return the questions of either form."""
        if self.requests is not None:
            return [q.ask(q.history, [q.target]) for q in self.requests]
        return [self.ask(self.history or [], [self.target or ""])]


class RankBody(Who):
    """Order candidates for a user; a rerank request whose query is the user's history."""

    history: History
    candidates: list[Title] | None = Field(
        None,
        min_length=1,
        max_length=MAX_CANDIDATES,
        validation_alias=AliasChoices("candidates", "documents"),
        description="Titles of the items; `documents` is another name for it. Left out: those of the catalogue.",
    )
    top_n: int | None = Field(None, ge=1, description="Return the best n only.")


class Source(BaseModel):
    """Which model answered."""

    model: str
    period: int
    """Period after which the model was made."""
    digest: str
    """SHA-256 of the model's fields."""
    version: int
    """Publish that brought it."""
    history_used: int
    """Newest events of the history that every prompt of this answer held; the older ones did not fit."""

    @staticmethod
    def fields(result: Result) -> dict[str, Any]:
        """Return the fields' values."""
        return {
            "model": result.name,
            "period": result.model.period,
            "digest": result.model.digest,
            "version": result.version,
            "history_used": int(result.used.min()),
        }


class Answer(Source):
    """P(like), and the model that gave it."""

    probability: float
    strategy: str
    """The same as `model`."""

    @staticmethod
    def of(result: Result) -> Answer:
        """Return the answer to one question."""
        return Answer(**Source.fields(result), strategy=result.name, probability=float(result.scores[0]))


class Answers(BaseModel):
    """Answers to `requests`, in their order."""

    answers: list[Answer]


class Ranked(BaseModel):
    """A candidate's place in the list that was sent, else in the catalogue, and P(like)."""

    index: int
    title: str | None = None
    """Of the catalogue; left out where the candidates were sent."""
    relevance_score: float


class Ranking(Source):
    """The candidates, best first; equal ones in the order in which they were sent."""

    object: str = "list"
    results: list[Ranked]

    @staticmethod
    def of(result: Result, top_n: int | None) -> Ranking:
        """Return the best candidates."""
        order = (-result.scores).argsort(kind="stable")[:top_n].tolist()
        results = [Ranked(index=i, relevance_score=float(result.scores[i])) for i in order]
        return Ranking(**Source.fields(result), results=results)

    @staticmethod
    def listed(result: Result, top_n: int | None, places: list[int], titles: list[str]) -> Ranking:
        """Return the best titles of the catalogue, where they stand at `places`."""
        found = Ranking.of(result, top_n)
        named = [
            Ranked(index=places[r.index], title=titles[r.index], **r.model_dump(include={"relevance_score"}))
            for r in found.results
        ]
        return found.model_copy(update={"results": named})


class ServedModel(BaseModel):
    """One served model."""

    model: str
    strategy: str
    """The same as `model`."""
    period: int
    digest: str
    merge: str
    adapters: list[str]
    weights: list[float]

    @staticmethod
    def of(model: Model, name: str) -> ServedModel:
        """Describe a model under the name that it is asked by."""
        return ServedModel(
            model=name,
            strategy=name,
            period=model.period,
            digest=model.digest,
            merge=model.merge,
            adapters=list(model.adapters),
            weights=list(model.weights),
        )


class ServedModels(BaseModel):
    """Everything that is served."""

    version: int
    default: str
    """Name of the model that answers where none is named."""
    models: list[ServedModel]
    candidate: ServedModel | None
    """The model on trial."""
    share: float
    """Share of users that it answers; 0: it is scored in the shadow."""

    @staticmethod
    def of(served: Served, default: str) -> ServedModels:
        """Describe what is served."""
        pairs = zip(served.models, served.names, strict=True)
        candidate = served.candidate and ServedModel.of(served.candidate, served.candidate.strategy)
        models = [ServedModel.of(m, name) for m, name in pairs]
        return ServedModels(
            version=served.version, default=default, models=models, candidate=candidate, share=served.share
        )


class Tested(BaseModel):
    """How a strategy did on a period that came after its model was made."""

    seed: int
    model: str
    period: int
    auc: float


class Chosen(BaseModel):
    """The weights of a strategy's adapters after a period."""

    seed: int
    model: str
    period: int
    weights: list[float]


class Change(BaseModel):
    """A change of what is served."""

    number: int
    version: int
    model: str
    """What answers where no model is named."""
    period: int
    candidate: str | None
    """The model on trial."""
    share: float

    @staticmethod
    def of(number: int, served: Served) -> Change:
        """Describe what was served from then on."""
        first, candidate = served.models[0], served.candidate
        return Change(
            number=number,
            version=served.version,
            model=first.strategy,
            period=first.period,
            candidate=candidate and candidate.strategy,
            share=served.share,
        )


class RunProgress(BaseModel):
    """How far the run is, from its folder."""

    name: str
    tested: list[Tested]
    coefficients: list[Chosen]
    """Of strategies with several adapters."""
    swaps: list[Change]

    @staticmethod
    def of(run_dir: Path) -> RunProgress:
        """Read the run's folder; a replay may be writing there.

        Raises:
            LsatError: when a file is broken.
        """
        records = RunReader(run_dir).ledger
        rows = [{**r, "model": r.get("strategy")} for r in records]
        return RunProgress(
            name=run_dir.resolve().name,
            tested=[Tested(**r) for r in rows if r["stage"] == "score" and r.get("auc") is not None],
            coefficients=[Chosen(**r) for r in rows if r["stage"] == "search" and len(r.get("weights", ())) > 1],
            swaps=[Change.of(number, served) for number, served in enumerate(past(run_dir), 1)],
        )


class Health(BaseModel):
    """The replica answers."""

    status: str
    version: int


class Problem(BaseModel):
    """What is wrong with a request."""

    field: str
    problem: str
    remedy: str


class Problems(BaseModel):
    """Why a request was refused; every refusal looks like this."""

    detail: list[Problem]


def problem(field: str, what: str, remedy: str) -> dict[str, str]:
    """Return one entry of an error's `detail`."""
    texts = {"field": field, "problem": what, "remedy": remedy}
    return {k: v.encode("utf-8", "replace").decode() for k, v in texts.items()}  # names may hold lone surrogates


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
            return problem(field, "no body", "send the JSON object that /docs shows")
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
    models: list[type[BaseModel]] = [ScoreBody, RankBody]
    if parents:
        models = [Event if parents[-1] == "history" else Question]
    return list(dict.fromkeys(name for model in models for name in model.model_fields))
