"""A cluster that is joined: what it can never place is refused before anything starts; one that is not there too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lsat_ray import config as configs
from lsat_ray.cli import doctor, front
from lsat_ray.errors import LsatError

SMOKE = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "smoke.yaml"


@pytest.mark.ray
@pytest.mark.timeout(360)
def test_a_joined_cluster_that_can_never_place_the_run_is_refused(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run started, and waited half an hour for workers that no node could hold."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    config = configs.load(SMOKE, ["engine.workers=3", "engine.cpus=1.5"])  # 4.5 of the cluster's 4 CPUs
    with pytest.raises(LsatError, match=r"the cluster at .*: the run asks for .* lower engine.sessions") as refused:
        front.replay(config, tmp_path / "runs", say=lambda text: None)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()
    (finding,) = doctor.placement(config)
    assert finding.level == "fail" and "the run asks for" in finding.text
    (finding,) = doctor.placement(configs.load(SMOKE))
    assert finding.level == "ok" and os.environ["RAY_ADDRESS"] in finding.text


def test_an_address_at_which_nobody_answers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from lsat_ray.distributed import cluster

    def refuse(**_: object) -> None:
        raise ConnectionError("ray.init could not connect")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(LsatError, match=r"RAY_ADDRESS: no cluster answers at 10.0.0.1:6379"):
        cluster.connect()
