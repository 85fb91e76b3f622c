"""What `serving.py` measures with: a backbone with adapters, what they should answer, clients, and single processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.training_rounds import SHAPES, random_llama
from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone import nano
from lsat_ray.backbone.load import load
from lsat_ray.config import Experiment
from lsat_ray.config import load as load_config
from lsat_ray.data import synthetic
from lsat_ray.data.periods import Periods, Slice, cut
from lsat_ray.prompts.encode import Encoder
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.recommender import Recommender

SETTINGS = ["data.keep_last=2000", "data.synthetic.warmup=2000", "backbone.device=cpu", "backbone.nano.epochs=0.2"]
TOLERANCE = 1e-6
"""Largest difference between an answer and the offline score of the digest that it names."""
AGAIN = (429, 500, 502, 503, 504)
"""Statuses after which a client that may tries again: busy, or lost with a replica that died."""
TRIES = 30
START_S = 180.0
"""Seconds in which a process of its own must be up."""


@dataclass
class Log:
    """What the clients saw."""

    latency: list[float] = field(default_factory=list)
    """Seconds from the moment at which the request was due (open loop) or sent; of those answered at the first try."""
    latency_again: list[float] = field(default_factory=list)
    """The same of those that were sent more than once."""
    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    """What they met before: a status, or the name of the connection's error."""

    @property
    def retried(self) -> int:
        """Requests that were sent more than once, and answered."""
        return len(self.latency_again)

    def quantile(self, q: float) -> float:
        """Return a latency in milliseconds."""
        return round(1000 * float(np.quantile(self.latency, q)), 1)


@dataclass
class Bench:
    """The endpoint, and what it should answer."""

    config: Experiment
    periods: Periods
    folder: Path
    root: Path
    """Folder of the run: adapters, config, what is served."""
    adapters: list[str]
    models: list[Model]
    """An ensemble, another one, a merge."""
    questions: list[dict[str, Any]]
    expected: dict[str, np.ndarray]
    """Offline scores of the questions by digest."""

    @property
    def single(self) -> Model:
        """The first adapter of the first ensemble, alone."""
        return Model("single", 2, "single", self.models[0].adapters[:1], (1.0,))

    def mixed(self, log: Log) -> int:
        """Return how many answers are not the offline score of the digest that they name."""
        return sum(bool(abs(a["probability"] - self.expected[a["digest"]][i]) > TOLERANCE) for i, a in log.answers)


def prepare(root: Path, shape: str, settings: list[str]) -> Bench:
    """Build backbone and adapters, and score the questions offline.

    Args:
        root: folder of the run.
        shape: `nano` (built from the log, as a replay does), or a shape of `SHAPES` with random weights.
        settings: overrides of the config.
    """
    config = load_config(None, [*SETTINGS, *settings])
    data = config.data
    log = synthetic.generate(data.synthetic, data.keep_last or 0, data.history)
    periods = cut(log, data, config.periods)
    folder = nano.build(periods, config.backbone.nano, config.prompt, root)
    if shape != "nano":
        folder = _enlarged(folder, shape, root)
    config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"path": str(folder)})})
    backbone = load(config.backbone, folder)
    model, store = AdaptedBackbone(backbone, config.lora), AdapterStore(root / "adapters")
    digests = []
    for seed in range(4):
        model.reset(seed)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.slot_parameters().items():
            if ".lora_B." in name:
                parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        rows = (Slice(1, "train"),), (Slice(1, "validation"),)
        spec = AdapterSpec(backbone.fingerprint, "benchmark", *rows, config.prompt, config.lora, config.recipe, seed)
        store.publish(spec, model.snapshot(), {}, str(folder))
        digests.append(spec.digest)
    a, b, c, d = digests
    models = [Model("lsat-en", t, "output-ensemble", p, (0.5, 0.5)) for t, p in ((2, (a, b)), (3, (c, d)))]
    models.append(Model("lsat-en", 4, "factor-arithmetic", (a, c), (0.3, 0.7)))
    samples = periods.rows(2).take(slice(0, 100))
    titles = periods.titles
    questions = [
        {"history": [{"title": titles[k], "liked": bool(y)} for k, y in zip(items, liked, strict=True)], "target": t}
        for items, liked, t in zip(
            samples.history_item, samples.history_label, [titles[k] for k in samples.item], strict=True
        )
    ]
    bench = Bench(config, periods, folder, root, digests, models, questions, {})
    offline, encoder = Recommender(model, store), Encoder(backbone.tokenizer, config.prompt, titles)
    scored = [*models, bench.single]
    offline.prepare(scored)
    bench.expected = dict(
        zip((m.digest for m in scored), offline.scores(scored, encoder.scoring(samples)), strict=True)
    )
    local = config.model_copy(update={"engine": config.engine.model_copy(update={"backend": "local"})})
    (root / "config.resolved.yaml").write_text(local.to_yaml())
    return bench


def _enlarged(nano_folder: Path, shape: str, root: Path) -> Path:
    """Return the folder of a random backbone of a shape, with the nano one's tokenizer."""
    from transformers import AutoTokenizer

    folder = root / f"random-{shape}"
    random_llama(SHAPES[shape], torch.device("cpu"), torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(nano_folder).save_pretrained(folder)
    return folder


async def at_rate(
    url: str, questions: list[dict[str, Any]], rate: float, log: Log, seconds: float = 0.0, until: Any = None
) -> None:
    """Send requests at a fixed rate, whether or not earlier ones were answered, and record what comes back.

    Args:
        url: of the endpoint.
        questions: asked in turn.
        rate: requests per second.
        log: what comes back.
        seconds: for how long.
        until: a future instead: the load ends with it, and requests are sent again after `AGAIN` and lost connections.
    """
    import aiohttp

    start = time.perf_counter() + 0.5
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(number: int, due: float) -> None:
            i = number % len(questions)
            for left in reversed(range(TRIES if until else 1)):
                try:
                    async with session.post(f"{url}/v1/score", json=questions[i]) as reply:
                        if reply.status == 200:
                            log.answers.append((i, await reply.json()))
                            again = until is not None and left < TRIES - 1
                            (log.latency_again if again else log.latency).append(time.perf_counter() - due)
                            return
                        reason, words = str(reply.status), (await reply.text())[:200]
                        wait = float(reply.headers.get("Retry-After", 0.2))
                except aiohttp.ClientError as error:
                    reason, words, wait = type(error).__name__, repr(error), 0.2
                if not left or (reason.isdigit() and int(reason) not in AGAIN):
                    log.failures.append(f"{reason} {words}")
                    return
                log.reasons[reason] += 1
                await asyncio.sleep(wait)

        tasks: list[asyncio.Task[None]] = []
        while (len(tasks) < round(rate * seconds)) if until is None else not until.done():
            due = start + len(tasks) / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(len(tasks), due)))
        await asyncio.gather(*tasks)


async def saturate(url: str, questions: list[dict[str, Any]], clients: int, seconds: float) -> Log:
    """Let a number of clients ask one question after the other."""
    import aiohttp

    log = Log()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        end = time.perf_counter() + seconds

        async def one(number: int) -> None:
            i = number
            while (began := time.perf_counter()) < end:
                i = (i + 1) % len(questions)
                async with session.post(f"{url}/v1/score", json=questions[i]) as reply:
                    reply.raise_for_status()
                    log.answers.append((i, await reply.json()))
                log.latency.append(time.perf_counter() - began)

        await asyncio.gather(*(one(n) for n in range(clients)))
    return log


@dataclass
class Process:
    """A server of one process."""

    url: str
    pid: int

    @property
    def cpu_s(self) -> float:
        """Seconds of processor time that it has spent."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(command: list[str], url: str, question: dict[str, Any]) -> Iterator[Process]:
    """Run a server until the block ends; it has answered once when the block begins."""
    root = str(Path(__file__).resolve().parent.parent)
    settings = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": root}
    process = subprocess.Popen([sys.executable, *command], env={**os.environ, **settings}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + START_S
    try:
        while True:
            try:
                asyncio.run(saturate(url, [question], 1, 0.2))
                break
            except Exception:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        yield Process(url, process.pid)
    finally:
        process.terminate()
        process.wait(20)


def ours(bench: Bench, port: int) -> contextlib.AbstractContextManager[Process]:
    """Serve the run with `lsat-ray serve`, without Ray."""
    command = ["-m", "lsat_ray", "serve", str(bench.root), "--port", str(port)]
    return running(command, f"http://127.0.0.1:{port}", bench.questions[0])


def peer(bench: Bench, port: int) -> contextlib.AbstractContextManager[Process]:
    """Serve the first ensemble with `serving_peer.py`."""
    members = [str(bench.root / "adapters" / digest) for digest in bench.models[0].adapters]
    command = [str(bench.folder), *members, "0.5", bench.config.prompt.item_word, str(port)]
    script = str(Path(__file__).with_name("serving_peer.py"))
    return running([script, *command], f"http://127.0.0.1:{port}", bench.questions[0])
