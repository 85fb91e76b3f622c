"""What every run does, whatever its work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lsat_ray.distributed.run import Run


class Idle(Run):
    """A run without work."""

    def work(self) -> None:
        """Do nothing."""

    def _results(self) -> None:
        """There are none."""


@pytest.mark.slow
@pytest.mark.ray
def test_a_finished_run_leaves_no_actors(ray_cluster: None, tiny_experiment: Any, tmp_path: Path) -> None:
    import ray

    run = Idle(tiny_experiment, tmp_path, lambda _: None)
    run.run()
    for call in (run.replayer.arrive.remote(1), run.sessions.queue.counts.remote()):
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(call, timeout=30)
