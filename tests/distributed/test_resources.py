"""What a cluster can place: live machines, and those that its autoscaler may add."""

from __future__ import annotations

import pytest


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
