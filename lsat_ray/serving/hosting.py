"""Serve a run from its folder, in this process.

`current.json` says what is served. Whoever replaces it, a running replay or `lsat-ray trial promote`, changes what is
served here within about a second, in two phases.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError
from lsat_ray.scoring.served import Served, read_current
from lsat_ray.serving.setup import PREDECESSOR_S, Setup, backbone_of, check_open, check_port

POLL_S = 0.5
"""Seconds between two looks at `current.json`."""

Say = Callable[[str], None]


def await_published(run_dir: Path, follow: bool, say: Say) -> None:
    """Check that the run has published something; with `follow`, wait for it.

    Raises:
        LsatError: when it has not.
    """
    told = False
    while (current := read_current(run_dir)) is None or (follow and current.version == 0):
        if not follow:
            raise LsatError(
                f"{run_dir}: nothing was published (no current.json); give the folder of a replay, "
                "with --follow when it has just begun"
            )
        if not told:
            say(f"waiting for the first models in {run_dir}")
            told = True
        time.sleep(POLL_S)


def host(config: Experiment, run_dir: Path, say: Say, stop: threading.Event | None = None) -> None:
    """Serve the run with uvicorn until the process is told to end, or `stop` is set: one copy of the model.

    Args:
        config: the run's, `serve` as it shall be here.
        run_dir: its folder.
        say: hears a line for every change.
        stop: ends it.

    Raises:
        LsatError: when it cannot be started.
    """
    import uvicorn

    from lsat_ray.serving.endpoint import build_app

    backbone, stop = backbone_of(config, run_dir), stop or threading.Event()
    check_open(config)
    check_port(config, PREDECESSOR_S)
    setup = Setup.of(config, backbone, (), run_dir / "adapters", run_dir)
    desk = setup.desk("local")
    app = build_app(desk, setup.token_sha256, setup.history, catalogue=setup.catalogue)
    host, port = config.serve.host, config.serve.port
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False))

    async def adopt(current: Served) -> None:
        await desk.prepare(current)
        await desk.commit(current.digest)

    async def serve() -> None:
        loop = asyncio.get_running_loop()

        def change(current: Served) -> None:
            asyncio.run_coroutine_threadsafe(adopt(current), loop).result()

        def until_ended() -> bool:
            if stop.is_set():
                server.should_exit = True
            return not server.should_exit

        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        say(line(desk.served, f"http://{host}:{port}", "in this process"))
        watching = asyncio.create_task(asyncio.to_thread(watch, run_dir, desk.served, change, say, until_ended))
        await serving
        await watching

    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:  # uvloop's where it is installed
        runner.run(serve())


def watch(run_dir: Path, known: Served, adopt: Callable[[Served], None], say: Say, on: Callable[[], bool]) -> None:
    """Adopt what replaces `current.json` until `on` says no; a refusal is said and changes nothing."""
    seen = known
    while on():
        try:
            current = read_current(run_dir)
            if current is not None and current.digest != seen.digest:
                seen = current
                began = time.monotonic()
                adopt(current)
                say(f"{current.words()}, after {time.monotonic() - began:.2f} s")
        except LsatError as error:
            say(f"not changed: {error}")
        time.sleep(POLL_S)


def line(served: Served, url: str, how: str) -> str:
    """Say where and how it is served, and what."""
    return f"serving at {url} ({how}): {served.words()}"
