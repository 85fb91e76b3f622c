"""Serve a run from its folder: on Ray Serve, or in this process where the run's `engine.backend` is local.

`current.json` says what is served. Whoever replaces it, a running replay or `lsat-ray promote`, changes what is served
here within about a second, in two phases. Ray is imported only where it serves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lsat_ray.config import Experiment
from lsat_ray.distributed.setup import Setup, backbone_of, check_open, check_port
from lsat_ray.errors import LsatError
from lsat_ray.scoring.served import Served, read_current

POLL_S = 0.5
"""Seconds between two looks at `current.json`."""
ALIVE_S = 5.0
"""Seconds between two looks at the cluster."""
PORT_S = 30.0
"""Seconds in which a predecessor that was killed lets go of the port."""

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
    """Serve the run until the process is told to end, or `stop` is set.

    Args:
        config: the run's, `serve` as it shall be here.
        run_dir: its folder.
        say: hears a line for every change.
        stop: ends it.

    Raises:
        LsatError: when it cannot be started, or the cluster was lost; the same command then starts it again.
    """
    backbone, stop = backbone_of(config, run_dir), stop or threading.Event()
    check_open(config)
    (_in_process if config.engine.backend == "local" else _on_ray)(config, backbone, run_dir, say, stop)


def _in_process(config: Experiment, backbone: Path, run_dir: Path, say: Say, stop: threading.Event) -> None:
    """Serve with uvicorn: one process, one copy of the model."""
    import uvicorn

    from lsat_ray.distributed.endpoint import build_app

    _await_port(config)
    setup = Setup.of(config, backbone, (), run_dir / "adapters", run_dir)
    desk = setup.desk("local")
    app = build_app(desk, setup.token_sha256, setup.history)
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
        say(_line(config, desk.served, f"http://{host}:{port}"))
        watching = asyncio.create_task(asyncio.to_thread(_watch, run_dir, desk.served, change, say, until_ended))
        await serving
        await watching

    asyncio.run(serve())


def _on_ray(config: Experiment, backbone: Path, run_dir: Path, say: Say, stop: threading.Event) -> None:
    """Serve on the cluster of `RAY_ADDRESS`, else on one that is started here and ends with this process."""
    from lsat_ray.distributed import cluster

    cluster.settle()
    from lsat_ray.distributed import serving

    # A replay of the same run may have an endpoint of its own on that cluster.
    config = config.model_copy(update={"name": f"{config.name}-served"})
    if not cluster.joins():
        _await_port(config)
    here = cluster.connect()
    try:
        handle = serving.start(config, backbone, (), run_dir / "adapters", run_dir)
        current = read_current(run_dir)
        assert current is not None
        say(_line(config, current, serving.url(config)))
        looked = time.monotonic()

        def alive() -> bool:
            nonlocal looked
            if time.monotonic() - looked > ALIVE_S:
                cluster.check_alive()
                looked = time.monotonic()
            return not stop.is_set()

        _watch(run_dir, current, partial(serving.adopt, handle, replicas=config.serve.replicas), say, alive)
        serving.stop(config)
    finally:
        if here:
            cluster.disconnect()


def _watch(run_dir: Path, known: Served, adopt: Callable[[Served], None], say: Say, on: Callable[[], bool]) -> None:
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


def _await_port(config: Experiment) -> None:
    deadline = time.monotonic() + PORT_S
    while True:
        try:
            return check_port(config)
        except LsatError:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)


def _line(config: Experiment, served: Served, url: str) -> str:
    how = "in this process" if config.engine.backend == "local" else f"{config.serve.replicas} replicas on Ray"
    return f"serving at {url} ({how}): {served.words()}"
