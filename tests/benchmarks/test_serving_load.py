"""The clients of the serving benchmark: what is sent again is counted, and a wrong answer is seen."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web
from desks import free_port

from benchmarks.serving_ground import Bench, Log, at_rate

QUESTIONS = [{"target": "a"}, {"target": "b"}, {"target": "c"}]


def load(refuse: dict[str, list[int]], retries: bool) -> Log:
    """Ask an endpoint that answers a target with these statuses first, at 200 requests per second."""
    log, port, asked = Log(), free_port(), Counter[str]()

    async def score(request: web.Request) -> web.Response:
        target = (await request.json())["target"]
        asked[target] += 1
        statuses = refuse.get(target, [])
        status = statuses.pop(0) if statuses else 200
        return web.json_response({"probability": 0.5, "digest": "d"}, status=status, headers={"Retry-After": "0"})

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/score", score)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        until: Any = asyncio.create_task(enough()) if retries else None
        try:
            await at_rate(f"http://127.0.0.1:{port}", QUESTIONS, 200, log, seconds=12 / 200, until=until)
        finally:
            await runner.cleanup()

    async def enough() -> None:
        while asked.total() < 12:
            await asyncio.sleep(0.005)

    asyncio.run(run())
    return log


def test_what_is_sent_again_is_counted_and_does_not_fail() -> None:
    log = load({"a": [503, 429], "b": [500]}, retries=True)
    assert log.failures == [] and log.retried in (2, 3)  # two in a row for "a" may meet two requests
    assert log.reasons == {"503": 1, "429": 1, "500": 1}
    assert len(log.answers) == len(log.latency) + log.retried >= 9


def test_without_retries_a_refusal_is_a_failure() -> None:
    log = load({"a": [503], "b": [422]}, retries=False)
    assert sorted(f[:3] for f in log.failures) == ["422", "503"]
    assert len(log.answers) == 10 and log.retried == 0 and not log.reasons


def test_an_answer_of_another_version_than_it_names_is_seen() -> None:
    log = load({}, retries=False)
    expected = {"d": np.array([0.5, 0.5, 0.6])}
    bench = Bench(None, None, Path(), Path(), [], [], QUESTIONS, expected)  # type: ignore[arg-type]
    assert bench.mixed(log) == 4
