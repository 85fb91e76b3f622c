"""The live page and what it reads, over real HTTP, and in a real browser where there is one."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from desks import TestDesk, body_of, desk_for, eventually, hosted, make_run

from lsat_ray.config import Experiment
from lsat_ray.data.periods import Periods
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.served import Served, commit

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = {"LSAT_TEST_PAGE": "a token"}


@pytest.fixture
def run(tiny_experiment: Experiment, tiny_backbone_folder: Path, tmp_path: Path) -> Path:
    """Return the folder of a run in which two periods were tested; the last line of its ledger is being written."""
    folder = make_run(tiny_experiment, tiny_backbone_folder, tmp_path)
    lines = [
        {"seed": 0, "strategy": "lsat-en(2)", "period": 2, "stage": "search", "weights": [0.3, 0.7]},
        {"seed": 0, "strategy": "single", "period": 2, "stage": "search", "weights": [1.0]},
        {"seed": 0, "strategy": "lsat-en(2)", "period": 3, "stage": "score", "auc": 0.625},
        {"seed": 0, "strategy": "lsat-en(2)", "period": 4, "stage": "score", "auc": 0.75},
    ]
    (folder / "ledger.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"seed": 0, "strat')
    return folder


@pytest.fixture
def desk(run: Path, tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path) -> TestDesk:
    """Return what the run serves, offline: an ensemble, and each of its adapters alone."""
    found = desk_for(tiny_experiment, tiny_periods, tiny_backbone_folder, run)
    a, b, *_ = found.adapters
    ensemble = Model("lsat-en(2)", 2, "output-ensemble", (a, b), (0.3, 0.7))
    alone = [Model(name, 2, "single", (d,), (1.0,)) for name, d in (("long-term", a), ("short-term", b))]
    commit(run, Served(2, (ensemble, *alone)))
    return found


def test_the_page_needs_nothing_from_elsewhere_and_its_data_needs_the_token(
    run: Path, desk: TestDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*next(iter(TOKEN.items())))
    with hosted(run, "serve.token_env=LSAT_TEST_PAGE") as url, httpx.Client(base_url=url) as client:
        page = client.get("/")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert re.findall(r"""(?:src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", page.text) == []
        assert "innerHTML" not in page.text
        routes = set(re.findall(r'call\("(/[^"]+)"', page.text))
        assert routes == {"/v1/models", "/v1/run", "/v1/rank"}
        documented = client.get("/openapi.json").json()["paths"]
        assert routes <= documented.keys()
        assert client.get("/v1/run").status_code == 401
        found = client.get("/v1/run", headers={"Authorization": f"Bearer {TOKEN['LSAT_TEST_PAGE']}"}).json()
    assert found["name"] == "tiny"
    assert [(t["model"], t["period"], t["auc"]) for t in found["tested"]] == [
        ("lsat-en(2)", 3, 0.625),
        ("lsat-en(2)", 4, 0.75),
    ]
    assert [c["weights"] for c in found["coefficients"]] == [[0.3, 0.7]]
    assert [(s["version"], s["model"]) for s in found["swaps"]] == [(2, "lsat-en(2)")]


def test_a_run_without_a_ledger_and_one_with_a_broken_ledger(run: Path, desk: TestDesk) -> None:
    with hosted(run) as url:
        (run / "ledger.jsonl").write_text("nonsense\n{}\n")
        broken = httpx.get(f"{url}/v1/run")
        assert broken.status_code == 503 and "ledger.jsonl: line 1: not JSON" in broken.json()["detail"][0]["problem"]
        (run / "ledger.jsonl").unlink()
        assert httpx.get(f"{url}/v1/run").json()["tested"] == []


async def browse(url: str, look: Callable[[Any], Any], profile: Path) -> None:
    """Open an address in a headless browser and let `look` work with a function that evaluates JavaScript in it."""
    import aiohttp

    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command = [str(BROWSER), *words, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        opened = profile / "DevToolsActivePort"
        eventually("the browser is up", lambda: opened.is_file() and len(opened.read_text().split()) == 2)
        port = opened.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            reply = await session.put(f"http://127.0.0.1:{port}/json/new?{url}")
            address = (await reply.json())["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=0) as socket:
                number = 0

                async def evaluate(code: str) -> Any:
                    nonlocal number
                    number += 1
                    options = {"expression": code, "awaitPromise": True, "returnByValue": True}
                    await socket.send_json({"id": number, "method": "Runtime.evaluate", "params": options})
                    while (message := await socket.receive_json(timeout=60)).get("id") != number:
                        pass
                    assert "exceptionDetails" not in message["result"], message
                    return message["result"]["result"].get("value")

                await look(evaluate)
    finally:
        process.terminate()
        process.wait(30)


async def until(evaluate: Callable[[str], Any], code: str, seconds: float = 60.0) -> Any:
    """Return the first true value of a JavaScript expression."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        if value := await evaluate(code):
            return value
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {code}; the page says {await evaluate('document.body.innerText')}")


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_a_browser_shows_the_run_ranks_and_follows_a_swap(
    run: Path, desk: TestDesk, tiny_periods: Periods, tmp_path: Path
) -> None:
    body = body_of(tiny_periods, 3)
    hostile = "<img src=x onerror=document.title='moved'>"
    titles = [*dict.fromkeys(tiny_periods.titles[:6]), hostile]
    events = "\n".join(("" if e["liked"] else "- ") + e["title"] for e in body["history"])

    with hosted(run) as url:

        async def look(evaluate: Callable[[str], Any]) -> None:
            await until(evaluate, "document.getElementById('models')?.rows.length === 4")
            assert await evaluate("document.title") == "tiny"
            assert "version 2, lsat-en(2) of period 2" in await evaluate(
                "document.getElementById('served').textContent"
            )
            assert await evaluate("document.querySelectorAll('#auc circle').length") == 2
            assert "lsat-en(2) 0.750" in await evaluate("document.getElementById('auc').textContent")
            assert "lsat-en(2) 0.300" in await evaluate("document.getElementById('weights').textContent")
            fill = {"history": events, "candidates": "\n".join(titles)}
            for name, text in fill.items():
                await evaluate(f"void (document.getElementById('{name}').value = {json.dumps(text)})")
            await evaluate("document.getElementById('ask').requestSubmit()")
            table = f"document.getElementById('ranking').rows.length === {len(titles) + 1}"
            await until(evaluate, table)
            cells = "[...document.getElementById('ranking').rows].map(r => [...r.cells].map(c => c.textContent))"
            head, *rows = await evaluate(cells)
            assert head == ["", "title", "lsat-en(2)", "long-term alone", "short-term alone"]
            asked = {"history": body["history"], "candidates": titles}
            async with httpx.AsyncClient(base_url=url) as client:
                replies = [(await client.post("/v1/rank", json=asked | {"model": m})).json() for m in
                           ("lsat-en(2)", "long-term", "short-term")]  # fmt: skip
            scores = [{r["index"]: r["relevance_score"] for r in reply["results"]} for reply in replies]
            assert [row[1] for row in rows] == [titles[r["index"]] for r in replies[0]["results"]]
            for row in rows:
                place = titles.index(row[1])
                assert row[2:] == [f"{found[place]:.4f}" for found in scores]
            assert await evaluate("document.title") == "tiny", "a title was run as HTML"
            commit(run, Served(3, (Model("single", 3, "single", (desk.adapters[3],), (1.0,)),)))
            await until(evaluate, "document.getElementById('served').textContent.includes('version 3, single')")
            await until(evaluate, "document.getElementById('swaps').rows.length === 3")
            assert await evaluate("document.getElementById('problem').textContent") == ""

        asyncio.run(browse(f"{url}/", look, tmp_path / "profile"))
