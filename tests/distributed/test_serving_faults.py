"""The endpoint while a replica dies under load and swaps, and under more load than it can carry."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rayless
from desks import body_of, desk_for, free_port, make_run
from desks import eventually as soon
from endpoints import REPLICAS, TOKEN, URL, Endpoint
from prometheus_client.parser import text_string_to_metric_families

from lsat_ray.client import Client, Score
from lsat_ray.config import Experiment
from lsat_ray.data.periods import Periods
from lsat_ray.errors import LsatError
from lsat_ray.scoring.model import Model


@pytest.mark.ray
@pytest.mark.slow
def test_a_replica_is_killed_while_swaps_go_on_under_load(endpoint: Endpoint) -> None:
    """Nothing fails for who tries again, no answer mixes two models, and every publish reaches both replicas."""
    from lsat_ray.distributed import serving

    a, b, c, d = endpoint.adapters
    models = [Model("lsat-en(2)", t, "output-ensemble", pair, (0.5, 0.5)) for t, pair in enumerate([(a, b), (c, d)], 2)]
    models += [Model("lsat-en(2)", 4, "factor-arithmetic", (a, c), (0.5, 0.5))]
    endpoint.publish(models[0])
    expected = {m.digest: endpoint.expected(m) for m in models}
    done, answers, failures = threading.Event(), list[tuple[int, Score]](), list[str]()
    retried, reasons = list[bool](), Counter[str]()
    questions = []
    for i in range(len(endpoint.samples)):
        body = endpoint.question(i)
        questions.append(([(e["title"], e["liked"]) for e in body["history"]], body["target"]))

    def load(worker: int) -> None:
        pick = np.random.default_rng(worker)
        with Client(URL, TOKEN["LSAT_TEST_TOKEN"], retries=6) as client:
            while not done.is_set():
                i, before = int(pick.integers(len(questions))), client.retried.total()
                try:
                    answers.append((i, client.score(*questions[i])))
                except LsatError as error:
                    failures.append(str(error))
                retried.append(client.retried.total() > before)
            reasons.update(client.retried)

    threads = [threading.Thread(target=load, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    try:
        for k in range(1, 8):
            if k == 3:
                victim = min(r.pid for r in serving.states(endpoint.handle))
                os.kill(victim, signal.SIGKILL)
            endpoint.publish(models[k % 3])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    print(f"{sum(retried)} of {len(retried)} requests were sent again, after {dict(reasons)}; {len(failures)} failed")
    assert failures == []
    assert reasons.keys() <= {"429", "500", "502", "503", "504", "ConnectError", "ReadError", "RemoteProtocolError"}
    assert sum(retried) < len(retried) / 2, "one dead replica of two must not send every request round again"
    assert {answer.digest for _, answer in answers} == set(expected)
    mixed = [i for i, answer in answers if abs(answer.probability - expected[answer.digest][i]) > 1e-6]
    assert mixed == []
    reports = serving.states(endpoint.handle)
    assert victim not in {r.pid for r in reports} and len(reports) == REPLICAS


def waits(text: str) -> tuple[float, float]:
    """Return how many jobs waited at most half a second, and how many were answered, from `/metrics`."""
    for family in text_string_to_metric_families(text):
        if family.name == "lsat_ray_wait_seconds":
            found = {s.labels.get("le", s.name): s.value for s in family.samples}
            return found["0.5"], found["+Inf"]
    raise AssertionError("no lsat_ray_wait_seconds")


@pytest.mark.slow
def test_under_twice_the_load_nothing_waits_past_its_deadline_and_the_rest_gets_429(
    tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    import aiohttp

    run = make_run(tiny_experiment, tiny_backbone_folder, tmp_path)
    desk_for(tiny_experiment, tiny_periods, tiny_backbone_folder, run)
    port = free_port()
    words = ["serve", str(run), "--port", str(port), "--set", "serve.deadline_s=0.5"]
    process = rayless.start(f"from lsat_ray.cli.app import app\napp({words!r})", tmp_path)
    url, body = f"http://127.0.0.1:{port}", body_of(tiny_periods, 3)
    ask = {"history": body["history"], "candidates": list(tiny_periods.titles) * 3}

    async def flood() -> tuple[list[tuple[int, float]], str]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one() -> tuple[int, float]:
                began = time.monotonic()
                async with session.post(f"{url}/v1/rank", json=ask) as reply:
                    await reply.read()
                    if reply.status == 429:
                        assert int(reply.headers["Retry-After"]) >= 1
                    return reply.status, time.monotonic() - began

            async def client(end: float) -> int:
                count = 0
                while time.monotonic() < end:
                    status, _ = await one()
                    count += status == 200
                return count

            await client(time.monotonic() + 1)  # warm
            carried = sum(await asyncio.gather(*(client(time.monotonic() + 4) for _ in range(2)))) / 4
            tasks = []
            start = time.monotonic()
            for number in range(int(2 * carried * 6)):  # six seconds, whether or not earlier ones were answered
                await asyncio.sleep(max(0.0, start + number / (2 * carried) - time.monotonic()))
                tasks.append(asyncio.create_task(one()))
            found = await asyncio.gather(*tasks)
            async with session.get(f"{url}/metrics") as reply:
                return found, await reply.text()

    try:
        with Client(url) as client:
            soon("it serves", lambda: _up(client))
        found, text = asyncio.run(flood())
    finally:
        process.terminate()
        process.communicate(timeout=90)
    statuses = [status for status, _ in found]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) > len(statuses) / 4, "overload is no reason to answer hardly anybody"
    in_time, answered = waits(text)
    assert in_time == answered > 0
    assert max(seconds for _, seconds in found) < 10, "a request hung"


def _up(client: Client) -> Any:
    try:
        return client.models()
    except LsatError:
        return None
