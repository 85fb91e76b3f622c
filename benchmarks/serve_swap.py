"""Claim: models change under load without a failed request, and no answer mixes two models.

    python benchmarks/serve_swap.py --rate 30 --seconds 20 --swaps 20

Requests arrive at a fixed rate, whether or not earlier ones were answered (open loop, so that a stall shows in the
latencies). Beside them models are published in turn. Every answer is compared with the offline score of the model whose
digest it names. Writes `benchmarks/results/serve_swap.json`.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone import nano
from lsat_ray.backbone.load import Backbone, load
from lsat_ray.config import Experiment
from lsat_ray.config import load as load_config
from lsat_ray.data import synthetic
from lsat_ray.data.periods import Periods, Slice, cut
from lsat_ray.prompts.encode import Encoder
from lsat_ray.scoring.recommender import Model, Recommender

RESULTS = Path(__file__).resolve().parent / "results" / "serve_swap.json"
SETTINGS = ["data.keep_last=2000", "data.synthetic.warmup=2000", "backbone.device=cpu", "backbone.nano.epochs=0.2"]


@dataclass
class Log:
    """What the clients saw."""

    latency: list[float] = field(default_factory=list)
    """Seconds from the moment at which the request was due."""
    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def adapters(model: AdaptedBackbone, backbone: Backbone, store: AdapterStore, config: Experiment) -> list[str]:
    """Publish four random adapters and return their digests."""
    digests = []
    for seed in range(4):
        model.reset(seed)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.slot_parameters().items():
            if ".lora_B." in name:
                parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        rows = (Slice(1, "train"),), (Slice(1, "validation"),)
        spec = AdapterSpec(backbone.fingerprint, "benchmark", *rows, config.prompt, config.lora, config.recipe, seed)
        store.publish(spec, model.snapshot(), {}, "nano")
        digests.append(spec.digest)
    return digests


def bodies(periods: Periods, count: int) -> list[dict[str, Any]]:
    """Return questions of period 2 as HTTP bodies."""
    samples, titles = periods.samples.take(periods.span(2)), periods.titles
    return [
        {
            "history": [
                {"title": titles[k], "liked": bool(y)}
                for k, y in zip(samples.history_item[i], samples.history_label[i], strict=True)
            ],
            "target": titles[samples.item[i]],
        }
        for i in range(count)
    ]


async def clients(url: str, questions: list[dict[str, Any]], rate: float, seconds: float, log: Log) -> None:
    """Send requests at a fixed rate and record what comes back."""
    import aiohttp

    start = time.perf_counter() + 0.5
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(number: int) -> None:
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            i = number % len(questions)
            try:
                async with session.post(f"{url}/score", json=questions[i]) as reply:
                    if reply.status != 200:
                        log.failures.append(f"{reply.status} {(await reply.text())[:200]}")
                        return
                    log.answers.append((i, await reply.json()))
                    log.latency.append(time.perf_counter() - due)
            except aiohttp.ClientError as error:
                log.failures.append(repr(error))

        await asyncio.gather(*(one(n) for n in range(round(rate * seconds))))


def quantile(values: list[float], q: float) -> float:
    """Return a quantile in milliseconds."""
    return round(1000 * float(np.quantile(values, q)), 1)


def main(rate: float = 30.0, seconds: float = 20.0, swaps: int = 20, replicas: int = 2, port: int = 18471) -> None:
    """Run the load, first without and then with swaps."""
    torch.set_num_threads(1)
    overrides = [*SETTINGS, f"serve.port={port}", f"serve.replicas={replicas}"]
    config = load_config(None, overrides)
    from lsat_ray.distributed import cluster

    cluster.connect()  # before ray is imported: it reads its environment then
    from lsat_ray.distributed import serving

    data = config.data
    log = synthetic.generate(data.synthetic, data.keep_last or 0, data.history)
    periods = cut(log, data, config.periods)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folder = nano.build(periods, config.backbone.nano, config.prompt, root)
        backbone = load(config.backbone, folder)
        model, store = AdaptedBackbone(backbone, config.lora), AdapterStore(root / "adapters")
        a, b, c, d = adapters(model, backbone, store, config)
        models = [Model("lsat-en(10)", t, "output-ensemble", p, (0.5, 0.5)) for t, p in ((2, (a, b)), (3, (c, d)))]
        models.append(Model("lsat-en(10)", 4, "factor-arithmetic", (a, c), (0.3, 0.7)))
        offline, encoder = Recommender(model, store), Encoder(backbone.tokenizer, config.prompt, periods.titles)
        offline.prepare(models)
        questions = bodies(periods, min(100, periods.span(2).stop - periods.span(2).start))
        samples = periods.samples.take(periods.span(2)).take(slice(0, len(questions)))
        expected = dict(zip((m.digest for m in models), offline.scores(models, encoder(samples)), strict=True))
        handle = serving.start(config, folder, periods.titles, store.root, root)
        serving.publish(handle, models[:1], 1, replicas, root)
        url = f"http://{config.serve.host}:{port}"
        asyncio.run(clients(url, questions, rate, 3.0, Log()))  # warm

        async def swapper(took: list[float]) -> None:
            for k in range(swaps):
                await asyncio.sleep(seconds / (swaps + 1) - (took[-1] if took else 0))
                begin = time.perf_counter()
                await asyncio.to_thread(serving.publish, handle, [models[(k + 1) % 3]], k + 2, replicas, root)
                took.append(time.perf_counter() - begin)

        async def both(seen: Log, took: list[float]) -> None:
            await asyncio.gather(clients(url, questions, rate, seconds, seen), swapper(took))

        quiet, busy = Log(), Log()
        took: list[float] = []
        asyncio.run(clients(url, questions, rate, seconds, quiet))
        asyncio.run(both(busy, took))
        serving.stop(config)
        cluster.disconnect()
    worst = max(abs(answer["probability"] - expected[answer["digest"]][i]) for i, answer in busy.answers)
    result = {
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "load_average": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
        },
        "setting": {
            "rate": rate,
            "seconds": seconds,
            "swaps": swaps,
            "replicas": replicas,
            "passes": "1 or 2 a request",
        },
        "requests": len(busy.answers) + len(busy.failures),
        "failed": len(busy.failures),
        "failures": busy.failures[:3],
        "digests_seen": len({answer["digest"] for _, answer in busy.answers}),
        "largest_difference_from_offline": worst,
        "publish_ms": {"p50": quantile(took, 0.5), "max": quantile(took, 1.0)},
        "latency_ms": {
            name: {
                "p50": quantile(log.latency, 0.5),
                "p99": quantile(log.latency, 0.99),
                "max": quantile(log.latency, 1),
            }
            for name, log in (("without swaps", quiet), ("with swaps", busy))
        },
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if busy.failures or worst > 1e-6:
        raise SystemExit("the claim does not hold")


if __name__ == "__main__":
    typer.run(main)
