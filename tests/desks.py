"""A desk over the tiny backbone with four random adapters, and its HTTP routes without a server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from workbench import Workbench, make_workbench, randomise

from lsat_ray.adapters.store import AdapterStore
from lsat_ray.cli import front
from lsat_ray.config import Experiment, PromptConfig
from lsat_ray.data.periods import Periods
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.recommender import Recommender
from lsat_ray.scoring.served import Served, write_current
from lsat_ray.serving.desk import Desk
from lsat_ray.serving.endpoint import build_app


@dataclass
class TestDesk:
    """A desk and what is behind it."""

    __test__ = False
    bench: Workbench
    desk: Desk
    adapters: list[str]


def models_of(adapters: list[str]) -> list[Model]:
    """Return one model of each kind."""
    a, b, c, _ = adapters
    return [
        Model("lsat-en(2)", 2, "output-ensemble", (a, b), (0.3, 0.7)),
        Model("single", 2, "single", (b,), (1.0,)),
        Model("lsat-ta(2)", 2, "factor-arithmetic", (a, b), (0.4, 0.6)),
        Model("exact", 2, "delta-arithmetic", (b, c), (0.5, 0.5)),
        Model("frozen", 0, "frozen"),
    ]


def desk_for(
    experiment: Experiment,
    periods: Periods,
    folder: Path,
    run_dir: Path,
    models: list[Model] | None = None,
    deadline_s: float = 20.0,
    batch_tokens: int = 16384,
    **prompt: Any,
) -> TestDesk:
    """Return a desk that serves one model of each kind."""
    torch.set_num_threads(1)
    bench = make_workbench(experiment, periods, folder, PromptConfig(**prompt))
    store, adapters = AdapterStore(run_dir / "adapters"), []
    for seed in range(4):
        randomise(bench.model, seed, 0.4)
        spec = bench.spec(seed=seed)
        store.publish(spec, bench.model.snapshot(), {}, "tiny")
        adapters.append(spec.digest)
    write_current(run_dir, Served(1, tuple(models or models_of(adapters))))
    recommender = Recommender(bench.model, store, batch_tokens, bench.backbone.fingerprint, state_bytes=1 << 20)
    desk = Desk(recommender, bench.encoder, run_dir, deadline_s=deadline_s)
    return TestDesk(bench, desk, adapters)


def body_of(periods: Periods, i: int, **more: Any) -> dict[str, Any]:
    """Return the question of row i of period 2."""
    samples = periods.rows(2)
    past = zip(samples.history_item[i], samples.history_label[i], strict=True)
    history = [{"title": periods.titles[k], "liked": bool(y)} for k, y in past]
    return {"history": history, "target": periods.titles[samples.item[i]], **more}


@asynccontextmanager
async def http(desk: Desk, token_sha256: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of the desk's routes."""
    transport = httpx.ASGITransport(build_app(desk, token_sha256), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://desk", timeout=60) as client:
        yield client


def make_run(experiment: Experiment, backbone_folder: Path, root: Path) -> Path:
    """Return the folder of a run of the local backend, with its nano backbone beside it; nothing is published yet."""
    folder, backbones = root / "runs" / "tiny", root / "runs" / "backbones"
    folder.mkdir(parents=True)
    backbones.mkdir()
    (backbones / "nano-0123").symlink_to(backbone_folder)
    engine = experiment.engine.model_copy(update={"backend": "local"})
    (folder / "config.resolved.yaml").write_text(experiment.model_copy(update={"engine": engine}).to_yaml())
    return folder


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(what: str, attempt: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Return the first true value of `attempt`; an endpoint that is not up yet is asked again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if value := attempt():
                return value
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


@contextmanager
def hosted(run: Path, *overrides: str) -> Iterator[str]:
    """Serve a run's folder from this process, over real HTTP, and return the address."""
    port, stop = free_port(), threading.Event()
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(front.serve, run, [f"serve.port={port}", *overrides], say=said.append, stop=stop)
        try:
            eventually("it serves", lambda: serving.done() or any("serving at" in line for line in said))
            yield f"http://127.0.0.1:{port}"
        finally:
            stop.set()
            serving.result(timeout=30)
