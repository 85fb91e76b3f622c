"""One real Ray cluster for the whole test session."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from endpoints import Endpoint

    from lsat_ray.config import Experiment
    from lsat_ray.data.periods import Periods

# Before the first import of ray, anywhere in the session: it reads them once.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # keeps the node on 127.0.0.1
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex * 2)
os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start Ray once, on the loopback address, with four logical CPUs."""
    import ray

    ray.init(address="local", num_cpus=4, logging_level="WARNING", log_to_driver=False, dashboard_host="127.0.0.1")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty run folder."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def endpoint(
    ray_cluster: None,
    tiny_experiment: Experiment,
    tiny_periods: Periods,
    tiny_backbone_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Endpoint]:
    """Return the running application."""
    from endpoints import running

    yield from running(tiny_experiment, tiny_periods, tiny_backbone_folder, tmp_path_factory.mktemp("serving"))


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """Return a client of the running application, with its token."""
    from endpoints import BEARER, URL

    with httpx.Client(base_url=URL, headers=BEARER, timeout=30) as session:
        yield session
