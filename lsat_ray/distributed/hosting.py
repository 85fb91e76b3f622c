"""Serve a run from its folder on Ray Serve: on the cluster of `RAY_ADDRESS`, else on one that ends with the process."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

from lsat_ray.config import Experiment
from lsat_ray.scoring.served import read_current
from lsat_ray.serving.hosting import Say, line, watch
from lsat_ray.serving.setup import PREDECESSOR_S, backbone_of, check_open, check_port


def host(config: Experiment, run_dir: Path, say: Say, stop: threading.Event | None = None) -> None:
    """Serve the run until the process is told to end, or `stop` is set.

    Args:
        config: the run's, `serve` as it shall be here.
        run_dir: its folder.
        say: hears a line for every change.
        stop: ends it.

    Raises:
        LsatError: when it cannot be started.
    """
    from lsat_ray.distributed import cluster

    cluster.settle()  # before ray is imported: it reads its environment then
    from lsat_ray.distributed import serving

    backbone, stop = backbone_of(config, run_dir), stop or threading.Event()
    check_open(config)

    # A replay of the same run may have an endpoint of its own on that cluster.
    config = config.model_copy(update={"name": f"{config.name}-served"})
    if not cluster.joins():
        check_port(config, PREDECESSOR_S)
    here = cluster.connect()
    try:
        current = read_current(run_dir)  # before the start: `watch` adopts what replaces it while replicas start
        assert current is not None
        handle = serving.start(config, backbone, (), run_dir / "adapters", run_dir)
        say(line(current, serving.url(config), f"{config.serve.replicas} replicas on Ray"))
        adopt = partial(serving.adopt, handle, replicas=config.serve.replicas)
        watch(run_dir, current, adopt, say, lambda: not stop.is_set())
        serving.stop(config)
    finally:
        if here:
            cluster.disconnect()
