"""A typed client of the endpoint; it needs httpx alone."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import httpx

from lsat_ray.errors import LsatError

AGAIN = (429, 503)
"""Answers after which a request is sent again."""

History = Iterable[tuple[str, bool]]
"""(title, liked) of a user's items, oldest first."""
T = TypeVar("T")


@dataclass(frozen=True)
class Score:
    """P(like), and the model that gave it."""

    probability: float
    model: str
    period: int
    digest: str
    version: int
    history_used: int


@dataclass(frozen=True)
class Place:
    """A candidate of a ranking."""

    index: int
    """In the list that was sent."""
    title: str
    score: float
    """P(like)."""


@dataclass(frozen=True)
class Ranking:
    """Candidates, best first, and the model that ordered them."""

    places: tuple[Place, ...]
    model: str
    period: int
    digest: str
    version: int
    history_used: int


@dataclass(frozen=True)
class ServedModel:
    """One served model."""

    model: str
    period: int
    digest: str
    merge: str
    adapters: tuple[str, ...]
    weights: tuple[float, ...]


class Client:
    """Ask an endpoint; 429, 503 and lost connections are tried again, as often and as long as is said.

    Every question may be asked twice: answers change nothing.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Open no connection yet.

        Args:
            url: address of the run, with its prefix where several runs share a cluster.
            token: bearer token.
            timeout_s: seconds for one try.
            retries: tries after the first.
            transport: of httpx, for tests and proxies.
        """
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.retries = retries
        self._http = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout_s, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def score(self, history: History, target: str, model: str | None = None, user: str | None = None) -> Score:
        """Return P(like) of a target.

        Raises:
            LsatError: with the endpoint's words, or when it cannot be reached.
        """
        return _read(Score, self._post("/v1/score", {**_who(history, model, user), "target": target}))

    def score_many(self, questions: Sequence[tuple[History, str]], model: str | None = None) -> list[Score]:
        """Return P(like) of several (history, target), all by one version; the endpoint takes 64 at a time.

        Raises:
            LsatError: with the endpoint's words, or when it cannot be reached.
        """
        bodies = [{**_who(history, model, None), "target": target} for history, target in questions]
        return [_read(Score, answer) for answer in self._post("/v1/score", {"requests": bodies})["answers"]]

    def rank(
        self,
        history: History,
        candidates: Sequence[str],
        top_n: int | None = None,
        model: str | None = None,
        user: str | None = None,
    ) -> Ranking:
        """Return the candidates, best first.

        Raises:
            LsatError: with the endpoint's words, or when it cannot be reached.
        """
        body = {**_who(history, model, user), "candidates": list(candidates)}
        reply = self._post("/v1/rank", body if top_n is None else {**body, "top_n": top_n})
        places = [Place(r["index"], candidates[r["index"]], r["relevance_score"]) for r in reply["results"]]
        return _read(Ranking, {**reply, "places": tuple(places)})

    def models(self) -> list[ServedModel]:
        """Return what is served.

        Raises:
            LsatError: with the endpoint's words, or when it cannot be reached.
        """
        found = self._send("GET", "/v1/models", None)["models"]
        return [_read(ServedModel, m | {k: tuple(m[k]) for k in ("adapters", "weights")}) for m in found]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._send("POST", path, body)

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        for left in reversed(range(self.retries + 1)):
            try:
                reply = self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                if not left:
                    raise LsatError(f"{self._http.base_url}: {type(error).__name__}; is the endpoint up?") from error
                wait = 1.0
            else:
                if reply.is_success:
                    return reply.json()
                if reply.status_code not in AGAIN or not left:
                    raise LsatError(f"{path}: {reply.status_code} {_words(reply)}")
                after = reply.headers.get("Retry-After", "")
                wait = float(after) if after.isdigit() else 1.0
            time.sleep(wait * random.uniform(1.0, 1.5))  # who was sent away together shall not return together
        raise AssertionError("unreachable")


def _who(history: History, model: str | None, user: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {"history": [{"title": title, "liked": liked} for title, liked in history]}
    return body | {k: v for k, v in (("model", model), ("user", user)) if v is not None}


def _read(kind: type[T], tree: dict[str, Any]) -> T:
    """Return the dataclass; fields that a newer endpoint adds are left out."""
    return kind(**{f.name: tree[f.name] for f in fields(kind)})  # type: ignore[arg-type]


def _words(reply: httpx.Response) -> str:
    try:
        return "; ".join(f"{d['field']}: {d['problem']}; {d['remedy']}" for d in reply.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return reply.text[:200]
