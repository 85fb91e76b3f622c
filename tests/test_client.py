"""The client, against the real routes and against an endpoint that has no time."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import httpx
import pytest

import lsat_ray
from lsat_ray.client import AsyncClient, Client
from lsat_ray.errors import LsatError

SCORE = {"probability": 0.5, "model": "m", "strategy": "m", "period": 1, "digest": "d", "version": 2, "history_used": 0}


def scripted(*replies: Any) -> tuple[Client, list[httpx.Request]]:
    """Return a client whose endpoint gives these replies in turn."""
    seen: list[httpx.Request] = []
    left = list(replies)

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        reply = left.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return Client("http://x/run", token="t", transport=httpx.MockTransport(answer)), seen


def busy(status: int) -> httpx.Response:
    return httpx.Response(status, headers={"Retry-After": "0"}, json={"detail": []})


def test_busy_answers_and_lost_connections_are_tried_again() -> None:
    client, seen = scripted(busy(429), busy(503), httpx.Response(500), httpx.Response(200, json=SCORE))
    assert client.score([("a", True)], "b").probability == 0.5
    assert [str(r.url) for r in seen] == ["http://x/run/v1/score"] * 4
    assert client.retried == {"429": 1, "503": 1, "500": 1}
    assert seen[0].headers["Authorization"] == "Bearer t"


def test_a_refusal_is_not_tried_again_and_keeps_its_words() -> None:
    detail = [{"field": "target", "problem": "missing", "remedy": "add target"}]
    client, seen = scripted(httpx.Response(422, json={"detail": detail}))
    with pytest.raises(LsatError, match="422 target: missing; add target"):
        client.score([], "b")
    assert len(seen) == 1


def test_it_gives_up_after_its_retries() -> None:
    client, seen = scripted(*[busy(429)] * 9)
    with pytest.raises(LsatError, match="429"):
        client.models()
    assert len(seen) == 4


def test_the_asynchronous_client_tries_again_as_the_other_does() -> None:
    left = [busy(429), httpx.ConnectError("no"), busy(503), httpx.Response(200, json=SCORE)]
    seen: list[httpx.Request] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        reply = left.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def ask() -> Any:
        async with AsyncClient("http://x/run", token="t", transport=httpx.MockTransport(answer)) as client:
            first = await client.score([("a", True)], "b")
            left.extend([busy(429)] * 9)
            with pytest.raises(LsatError, match="/v1/models: 429"):
                await client.models()
            assert client.retried == {"429": 1 + client.retries, "ConnectError": 1, "503": 1}
            return first

    assert asyncio.run(ask()).probability == 0.5
    assert [str(r.url) for r in seen] == ["http://x/run/v1/score"] * 4 + ["http://x/run/v1/models"] * 4
    assert seen[0].headers["Authorization"] == "Bearer t"


def test_both_clients_have_the_same_calls_and_are_offered_by_the_package() -> None:
    assert (lsat_ray.Client, lsat_ray.AsyncClient) == (Client, AsyncClient)
    for name in ("score", "score_many", "rank", "models"):
        one, other = getattr(Client, name), getattr(AsyncClient, name)
        assert inspect.signature(one) == inspect.signature(other)
        assert one.__doc__ == other.__doc__


def test_the_asynchronous_client_speaks_to_the_real_routes(
    tiny_experiment: Any, tiny_periods: Any, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    from desks import body_of, desk_for

    from lsat_ray.serving.endpoint import build_app

    served = desk_for(tiny_experiment, tiny_periods, tiny_backbone_folder, tmp_path)
    history = [(e["title"], e["liked"]) for e in body_of(tiny_periods, 3)["history"]]
    titles = tiny_periods.titles[:20]

    async def ask() -> None:
        async with AsyncClient("http://desk", transport=httpx.ASGITransport(build_app(served.desk))) as client:
            assert [m.model for m in await client.models()] == served.desk.served.names
            ranking, *alone = await asyncio.gather(
                client.rank(history, titles), *(client.score(history, title) for title in titles)
            )
            for place in ranking.places:
                assert alone[place.index].probability == pytest.approx(place.score, abs=1e-6)
            many = await client.score_many([(history, title) for title in titles[:3]], model="single")
            assert [s.model for s in many] == ["single"] * 3

    asyncio.run(ask())


def test_it_speaks_to_the_real_routes(
    tiny_experiment: Any, tiny_periods: Any, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    from desks import body_of, desk_for, http

    served = desk_for(tiny_experiment, tiny_periods, tiny_backbone_folder, tmp_path)

    def over_asgi(request: httpx.Request) -> httpx.Response:
        async def send() -> httpx.Response:
            async with http(served.desk) as session:
                body = request.read()
                return await session.request(request.method, request.url.path, content=body, headers=request.headers)

        reply = asyncio.run(send())
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)

    history = [(e["title"], e["liked"]) for e in body_of(tiny_periods, 3)["history"]]
    with Client("http://desk", transport=httpx.MockTransport(over_asgi)) as client:
        names = [m.model for m in client.models()]
        assert names == served.desk.served.names
        titles = tiny_periods.titles[:20]
        ranking = client.rank(history, titles, top_n=5)
        assert len(ranking.places) == 5 and ranking.history_used == 10
        best = ranking.places[0]
        assert titles[best.index] == best.title
        assert client.score(history, best.title).probability == pytest.approx(best.score, abs=1e-6)
        many = client.score_many([(history, titles[i]) for i in range(3)], model="single")
        assert [s.model for s in many] == ["single"] * 3
