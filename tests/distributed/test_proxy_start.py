"""What fails between Serve and the driver: a proxy that dies while it starts, and what nobody foresaw."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from lsat_ray.cli import front
from lsat_ray.errors import LsatError
from tests.chaos.processes import TITLES, descendants

pytestmark = [pytest.mark.ray, pytest.mark.timeout(540)]
PORT = 18437


def test_a_proxy_that_dies_while_it_starts_costs_time_and_nothing_else(ray_cluster: None) -> None:
    """On busy nodes Serve kills one that is slow: the run ended with pages of traceback."""
    from ray import serve

    from lsat_ray.distributed import serving

    serve.shutdown()
    struck: list[int] = []

    def strike() -> None:
        deadline = time.monotonic() + 60
        while not struck and time.monotonic() < deadline:
            for pid, line in descendants(os.getpid()).items():
                if TITLES["proxy"] in line:
                    os.kill(pid, signal.SIGKILL)
                    struck.append(pid)
            time.sleep(0.01)

    beside = threading.Thread(target=strike)
    beside.start()
    serving._open("127.0.0.1", PORT)
    beside.join()
    assert struck
    assert serve.status().proxies
    serve.shutdown()


def test_an_error_of_rays_that_nobody_foresaw_is_one_line_and_its_traceback_a_file(
    ray_cluster: None, tmp_path: Path
) -> None:
    import ray

    class Actor:
        def answer(self) -> None:
            raise KeyError("nobody foresaw this")

    actor = ray.remote(Actor).remote()
    words = r"ray: KeyError: .*nobody foresaw.*driver\.log; the same command goes on"
    with pytest.raises(LsatError, match=words) as told, front._one_line(tmp_path):
        ray.get(actor.answer.remote())
    assert "\n" not in str(told.value)
    assert "Traceback" in (tmp_path / "train" / "driver.log").read_text()
    with pytest.raises(KeyError), front._one_line(tmp_path):
        raise KeyError("a defect of ours")
