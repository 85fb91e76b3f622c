"""What a cluster can place: live machines, and those that its autoscaler may add."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError


def test_an_autoscaler_may_add_machines_up_to_its_limits() -> None:
    from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

    from lsat_ray.distributed.resources import UNLIMITED, offered

    head, gpu = {"CPU": 0.0, "node:1": 1.0}, {"CPU": 8.0, "GPU": 1.0, "memory": 1e9}
    groups = [
        NodeGroupConfig(resources={"CPU": 8, "GPU": 1}, max_count=3),
        NodeGroupConfig(resources={"CPU": 4}, max_count=-1),
    ]
    config = ClusterConfig(node_group_configs=groups)
    assert offered([head, gpu], None) == [(0, 0), (8, 1)]
    found = offered([head, gpu], config)
    assert found.count((8, 1)) == 3
    assert found.count((4, 0)) == UNLIMITED


@pytest.mark.ray
def test_live_machines_are_counted_and_the_cluster_stays(ray_cluster: None) -> None:
    import ray

    from lsat_ray.distributed.resources import nodes

    (node,) = nodes()
    assert node[0] == ray.cluster_resources()["CPU"]
    assert ray.is_initialized()


@pytest.mark.ray
def test_a_replica_is_refused_before_ray_starts_and_in_the_replica_before_its_weights(
    tiny_experiment: Experiment, tiny_backbone_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray
    import torch

    from lsat_ray.distributed import scorer, serving
    from lsat_ray.serving.setup import Setup
    from lsat_ray.training import memory

    changes = {"path": str(tiny_backbone_folder)}
    config = tiny_experiment.model_copy(
        update={
            "backbone": tiny_experiment.backbone.model_copy(update=changes),
            "serve": tiny_experiment.serve.model_copy(update={"gpus": 0.5, "port": 18539}),
        }
    )
    monkeypatch.setattr(memory, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(memory, "size_of", lambda _: 200_000)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(LsatError, match="memory: a replica needs about"):
        serving.check(config)

    class Granted:
        """What Ray gives this replica."""

        @staticmethod
        def get_assigned_resources() -> dict[str, float]:
            return {"CPU": 1.0, "GPU": 0.5}

    monkeypatch.setattr(ray, "get_runtime_context", Granted)
    setup = Setup.of(config, tiny_backbone_folder, (), tmp_path, tmp_path)
    with pytest.raises(LsatError, match="memory: a replica needs about"):
        scorer.Scorer(setup)


@pytest.mark.ray
def test_what_a_replica_refused_is_told_in_its_own_words_not_in_a_traceback() -> None:
    from lsat_ray.distributed.serving import _reason

    trace = "The deployment failed to start 3 times in a row. " + 40 * 'File "scorer.py", line 1, in __init__\n'
    assert _reason(f"{trace}lsat_ray.errors.LsatError: memory: too small; ways out\n") == "memory: too small; ways out"
    assert _reason("No node has 2 GPUs").startswith("No node")
