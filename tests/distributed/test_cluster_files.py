"""The files under cluster/: valid for Ray's own schemas, and closed to strangers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2] / "cluster"


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_launcher_files_are_what_ray_up_takes(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(name))
    validate_config(config)
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        if "ray start" in command:
            assert "RAY_AUTH_MODE=token" in command
    head = next(c for c in config["head_start_ray_commands"] if "--head" in c)
    assert "--dashboard-host=127.0.0.1" in head
    assert config["available_node_types"]["gpu"]["min_workers"] == 0
    assert config["file_mounts"]["/home/ray/.ray/auth_token"]


def test_only_ssh_is_open_to_the_world() -> None:
    rules = read("aws.yaml")["provider"]["security_group"]["IpPermissions"]
    assert [(r["FromPort"], r["ToPort"]) for r in rules] == [(22, 22)]


@pytest.mark.parametrize(
    ("name", "kind", "section"),
    [
        ("kuberay-rayjob.yaml", "RayJob", "rayClusterSpec"),
        ("kuberay-rayservice.yaml", "RayService", "rayClusterConfig"),
    ],
)
def test_kuberay_manifests_ask_for_the_token(name: str, kind: str, section: str) -> None:
    manifest = read(name)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    cluster = manifest["spec"][section]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())


def test_the_service_names_an_application_that_exists() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(read("kuberay-rayservice.yaml")["spec"]["serveConfigV2"]))
    module, _, name = config.applications[0].import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_application_is_built_from_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lsat_ray.config import Experiment, ServeConfig
    from lsat_ray.distributed.serving import application

    monkeypatch.setenv("SCORE_TOKEN", "x")
    config = Experiment(serve=ServeConfig(replicas=3, token_env="SCORE_TOKEN", deadline_s=7))
    (tmp_path / "config.resolved.yaml").write_text(config.to_yaml())
    app = application({"run_dir": str(tmp_path), "backbone": "somewhere"})
    deployment = app._bound_deployment
    (setup,) = deployment.init_args
    assert deployment.num_replicas == 3
    assert (setup.run_dir, setup.store_root) == (str(tmp_path), str(tmp_path / "adapters"))
    assert (setup.backbone_folder, setup.deadline_s, setup.history) == ("somewhere", 7, config.data.history)
    assert setup.token_sha256 is not None and setup.token_sha256 != "x"


def test_the_runtime_env_is_valid() -> None:
    from ray.runtime_env import RuntimeEnv

    env = RuntimeEnv(**read("runtime_env.yaml"))
    assert "runs" in env["excludes"]
