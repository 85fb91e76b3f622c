"""Typed clients of the endpoint, blocking and asynchronous; they need httpx alone."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Generic, TypeVar

import httpx

from lsat_ray.errors import LsatError

URL = "http://127.0.0.1:8000"
"""Where an endpoint listens unless told otherwise."""
AGAIN = (429, 500, 502, 503, 504)
"""Answers after which a request is sent again: busy, or (500) lost by Serve's proxy with a replica that died."""

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
    """In the list that was sent, else in the deployment's catalogue."""
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


@dataclass(frozen=True)
class _Call(Generic[T]):
    """A request, and how its reply is read: what both clients share."""

    method: str
    path: str
    body: dict[str, Any] | None
    read: Callable[[Any], T]

    def wait(self, reply: httpx.Response | httpx.TransportError, last: bool) -> float | None:
        """Return the seconds after which to send the request again, or None when the reply is the answer.

        Raises:
            LsatError: with the endpoint's words, or when it cannot be reached.
        """
        seconds = 1.0
        if isinstance(reply, httpx.TransportError):
            if last:
                raise LsatError(f"{reply.request.url}: {type(reply).__name__}; is the endpoint up?") from reply
        elif reply.is_success:
            return None
        elif reply.status_code not in AGAIN or last:
            raise LsatError(f"{self.path}: {reply.status_code} {_words(reply)}")
        elif (after := reply.headers.get("Retry-After", "")).isdigit():
            seconds = float(after)
        return seconds * random.uniform(1.0, 1.5)  # who was sent away together shall not return together


def _score(history: History, target: str, model: str | None, user: str | None) -> _Call[Score]:
    return _Call("POST", "/v1/score", {**_who(history, model, user), "target": target}, partial(_read, Score))


def _score_many(questions: Sequence[tuple[History, str]], model: str | None) -> _Call[list[Score]]:
    bodies = [{**_who(history, model, None), "target": target} for history, target in questions]
    return _Call("POST", "/v1/score", {"requests": bodies}, lambda reply: [_read(Score, a) for a in reply["answers"]])


def _rank(
    history: History, candidates: Sequence[str] | None, top_n: int | None, model: str | None, user: str | None
) -> _Call[Ranking]:
    body = _who(history, model, user)
    if candidates is not None:
        body["candidates"] = list(candidates)

    def read(reply: dict[str, Any]) -> Ranking:
        titles = [r["title"] if candidates is None else candidates[r["index"]] for r in reply["results"]]
        places = [Place(r["index"], t, r["relevance_score"]) for r, t in zip(reply["results"], titles, strict=True)]
        return _read(Ranking, {**reply, "places": tuple(places)})

    return _Call("POST", "/v1/rank", body if top_n is None else {**body, "top_n": top_n}, read)


def _models() -> _Call[list[ServedModel]]:
    def read(reply: dict[str, Any]) -> list[ServedModel]:
        return [_read(ServedModel, m | {k: tuple(m[k]) for k in ("adapters", "weights")}) for m in reply["models"]]

    return _Call("GET", "/v1/models", None, read)


class Client:
    """Ask an endpoint; `AGAIN` and lost connections are tried again, as often and as long as is said.

    Every question may be asked twice: answers change nothing. All calls raise LsatError with the endpoint's words, or
    when it cannot be reached.
    """

    def __init__(
        self,
        url: str = URL,
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
        self.retries = retries
        self.retried: Counter[str] = Counter()
        """Tries after the first, by what the try before met: a status (`503`) or the name of the connection's error."""
        self._http = httpx.Client(**_options(url, token, timeout_s), transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def score(self, history: History, target: str, model: str | None = None, user: str | None = None) -> Score:
        """Return P(like) of a target."""
        return self._send(_score(history, target, model, user))

    def score_many(self, questions: Sequence[tuple[History, str]], model: str | None = None) -> list[Score]:
        """Return P(like) of several (history, target), all by one version; the endpoint takes 64 at a time."""
        return self._send(_score_many(questions, model))

    def rank(
        self,
        history: History,
        candidates: Sequence[str] | None = None,
        top_n: int | None = None,
        model: str | None = None,
        user: str | None = None,
    ) -> Ranking:
        """Return the candidates, best first; without any, the best of the deployment's catalogue."""
        return self._send(_rank(history, candidates, top_n, model, user))

    def models(self) -> list[ServedModel]:
        """Return what is served."""
        return self._send(_models())

    def _send(self, call: _Call[T]) -> T:
        for left in reversed(range(self.retries + 1)):
            reply: httpx.Response | httpx.TransportError
            try:
                reply = self._http.request(call.method, call.path, json=call.body)
            except httpx.TransportError as error:
                reply = error
            wait = call.wait(reply, not left)
            if wait is None and isinstance(reply, httpx.Response):
                return call.read(reply.json())
            self.retried[_met(reply)] += 1
            time.sleep(wait or 0.0)
        raise AssertionError("unreachable")


class AsyncClient:
    """The same as `Client`, to be awaited; requests of one client share its connections."""

    def __init__(
        self,
        url: str = URL,
        token: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Open no connection yet; see `Client`."""
        self.retries = retries
        self.retried: Counter[str] = Counter()
        """See `Client`."""
        self._http = httpx.AsyncClient(**_options(url, token, timeout_s), transport=transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def score(self, history: History, target: str, model: str | None = None, user: str | None = None) -> Score:
        """Return P(like) of a target."""
        return await self._send(_score(history, target, model, user))

    async def score_many(self, questions: Sequence[tuple[History, str]], model: str | None = None) -> list[Score]:
        """Return P(like) of several (history, target), all by one version; the endpoint takes 64 at a time."""
        return await self._send(_score_many(questions, model))

    async def rank(
        self,
        history: History,
        candidates: Sequence[str] | None = None,
        top_n: int | None = None,
        model: str | None = None,
        user: str | None = None,
    ) -> Ranking:
        """Return the candidates, best first; without any, the best of the deployment's catalogue."""
        return await self._send(_rank(history, candidates, top_n, model, user))

    async def models(self) -> list[ServedModel]:
        """Return what is served."""
        return await self._send(_models())

    async def _send(self, call: _Call[T]) -> T:
        for left in reversed(range(self.retries + 1)):
            reply: httpx.Response | httpx.TransportError
            try:
                reply = await self._http.request(call.method, call.path, json=call.body)
            except httpx.TransportError as error:
                reply = error
            wait = call.wait(reply, not left)
            if wait is None and isinstance(reply, httpx.Response):
                return call.read(reply.json())
            self.retried[_met(reply)] += 1
            await asyncio.sleep(wait or 0.0)
        raise AssertionError("unreachable")


def _options(url: str, token: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return {"base_url": url.rstrip("/"), "headers": headers, "timeout": timeout_s}


def _who(history: History, model: str | None, user: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {"history": [{"title": title, "liked": liked} for title, liked in history]}
    return body | {k: v for k, v in (("model", model), ("user", user)) if v is not None}


def _met(reply: httpx.Response | httpx.TransportError) -> str:
    return str(reply.status_code) if isinstance(reply, httpx.Response) else type(reply).__name__


def _read(kind: type[T], tree: dict[str, Any]) -> T:
    """Return the dataclass; fields that a newer endpoint adds are left out."""
    return kind(**{f.name: tree[f.name] for f in fields(kind)})  # type: ignore[arg-type]


def _words(reply: httpx.Response) -> str:
    try:
        return "; ".join(f"{d['field']}: {d['problem']}; {d['remedy']}" for d in reply.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return reply.text[:200]
