"""The files under cluster/: valid for Ray's own schemas, and closed to strangers."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import tomllib
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import jsonschema
import kuberay
import kubernetes_validate
import pytest
import yaml

import lsat_ray
from lsat_ray.cli.app import app
from lsat_ray.cli.placement import Node, problem
from lsat_ray.config import load

ROOT = Path(__file__).resolve().parents[2] / "cluster"
CONFIGS = ROOT.parent / "jobs" / "configs"


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


LAUNCHERS = ["aws.yaml", "gcp.yaml"]
MANIFESTS = [
    ("kuberay-rayjob.yaml", "RayJob", "rayClusterSpec"),
    ("kuberay-rayservice.yaml", "RayService", "rayClusterConfig"),
]
KUBERNETES = "1.33"
"""Version whose pods the manifests describe."""
INSTANCES = {
    "m5.2xlarge": {"CPU": 8},
    "g5.2xlarge": {"CPU": 8, "GPU": 1},
    "p5.4xlarge": {"CPU": 16, "GPU": 1},
    "n2-standard-8": {"CPU": 8},
    "g2-standard-8": {"CPU": 8, "GPU": 1},
    "a2-ultragpu-1g": {"CPU": 12, "GPU": 1},
}
"""What the clouds' pages say that these machines have."""


@pytest.mark.parametrize("name", LAUNCHERS)
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


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_node_type_has_what_its_machine_has_and_the_head_has_no_work(name: str) -> None:
    """A type with `resources: {}` is never started on GCP, and one that promises too much waits for ever."""
    config = read(name)
    types = config["available_node_types"]
    assert types.pop(config["head_node_type"])["resources"] == {"CPU": 0}
    assert any("--num-cpus=0" in c for c in config["head_start_ray_commands"])
    for node in types.values():
        machine = node["node_config"]
        assert node["resources"] == INSTANCES[machine.get("InstanceType") or machine["machineType"]]
    assert sum(node["max_workers"] for node in types.values()) <= config["max_workers"]


def test_the_machine_image_is_the_one_that_this_ray_takes() -> None:
    """Read in Ray's source: the module itself imports boto3, which this project does not need."""
    import ray

    config = read("aws.yaml")
    images = {node["node_config"]["ImageId"] for node in config["available_node_types"].values()}
    source = (Path(ray.__file__).parent / "autoscaler" / "_private" / "aws" / "config.py").read_text()
    (image,) = images
    assert f'"{config["provider"]["region"]}": "{image}"' in source


def test_gcps_machine_image_is_one_and_not_the_newest_of_a_family() -> None:
    """A family's name means another image, with another driver, from one day to the next."""
    types = read("gcp.yaml")["available_node_types"].values()
    (image,) = {disk["initializeParams"]["sourceImage"] for node in types for disk in node["node_config"]["disks"]}
    assert re.fullmatch(r"projects/[a-z-]+/global/images/[a-z0-9-]+-nvidia-\d+-v20\d{6}", image)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_nodes_wait_for_drivers_and_share_memory_and_cache(name: str) -> None:
    config = read(name)
    (wait,) = [c for c in config["initialization_commands"] if "nvidia-smi" in c]
    assert "timeout" in wait and "lspci" in wait  # a head without a card does not wait
    options = " ".join(config["docker"]["run_options"])
    assert "--shm-size" in options
    assert "HF_HOME=/mnt/shared" in options and "-v /mnt/shared:/mnt/shared" in options


def offered(name: str) -> list[Node]:
    """Return the machines that a file may start."""
    tree = read(name)
    if name in LAUNCHERS:
        types = tree["available_node_types"]
        head = tree["head_node_type"]
        counts = [(types[t]["resources"], 1 if t == head else types[t]["max_workers"]) for t in types]
        return [Node(r.get("CPU", 0), r.get("GPU", 0)) for r, count in counts for _ in range(count)]
    spec = tree["spec"].get("rayClusterSpec") or tree["spec"]["rayClusterConfig"]
    nodes = [Node(float(spec["headGroupSpec"]["rayStartParams"]["num-cpus"]), 0)]
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        nodes += [Node(float(limits["cpu"]), float(limits["nvidia.com/gpu"]))] * group["maxReplicas"]
    return nodes


@pytest.mark.parametrize("name", [*LAUNCHERS, "kuberay-rayjob.yaml"])
@pytest.mark.parametrize("config", ["ml1m_qwen3_0.6b", "ml1m_llama7b", "smoke"])
def test_the_machines_can_place_what_the_shipped_configs_ask_for(
    name: str, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML1M", "/logs/ml-1m")
    assert problem(load(CONFIGS / f"{config}.yaml"), offered(name)) is None


CARDS = {"g5.2xlarge": 24, "g2-standard-8": 24, "p5.4xlarge": 80, "a2-ultragpu-1g": 80}
"""GiB of the GPU of these machines, as the clouds' pages have it."""


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize(
    ("kind", "config", "model"), [("gpu", "ml1m_qwen3_0.6b", "qwen3_0.6b"), ("gpu80", "ml1m_llama7b", "llama7b")]
)
def test_a_node_type_has_the_gpu_memory_that_its_configs_need(
    name: str, kind: str, config: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shapes import shape, shipped

    from lsat_ray.training.memory import dressed, refusal, replica_refusal

    node = read(name)["available_node_types"][kind]["node_config"]
    experiment = shipped(config, monkeypatch)
    backbone = shape(model)
    card = CARDS[node.get("InstanceType") or node["machineType"]] * 2**30
    model, tokens = dressed(backbone, experiment.lora), experiment.engine.batch_tokens
    assert refusal(model, experiment, int(card * experiment.engine.gpus)) is None
    assert replica_refusal(model, tokens, experiment.serve.states_mib << 20, card, experiment.serve.gpus) is None


def test_there_is_one_image_and_one_list_of_packages() -> None:
    images = {read(name)["docker"]["image"] for name in LAUNCHERS}
    for name, _, section in MANIFESTS:
        spec = read(name)["spec"][section]
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        images |= {c["image"] for g in groups for c in g["template"]["spec"]["containers"]}
    (image,) = images
    assert image.partition(":")[2] == lsat_ray.__version__
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"-t {image} " in dockerfile
    assert "--constraint constraints.txt --editable ." in dockerfile
    for name in LAUNCHERS:
        assert "torch" not in (ROOT / name).read_text()


def test_only_ssh_is_open_to_the_world() -> None:
    rules = read("aws.yaml")["provider"]["security_group"]["IpPermissions"]
    assert [(r["FromPort"], r["ToPort"]) for r in rules] == [(22, 22)]


@pytest.mark.parametrize(("name", "kind", "section"), MANIFESTS)
def test_kuberay_manifests_have_the_structure_that_the_operator_expects(name: str, kind: str, section: str) -> None:
    manifest = read(name)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    cluster = manifest["spec"][section]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        volumes = {v["name"]: v for v in pod["volumes"]}
        assert mounts.keys() == volumes.keys()
        assert mounts["memory"] == "/dev/shm" and volumes["memory"]["emptyDir"]["medium"] == "Memory"
        env = {e["name"]: e.get("value") for e in container["env"]}
        assert env["HF_HOME"].startswith(mounts["shared"])
        assert container["resources"]["requests"] == container["resources"]["limits"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        tolerated = {t["key"] for t in group["template"]["spec"]["tolerations"]}
        assert "nvidia.com/gpu" in tolerated


@pytest.mark.parametrize(("name", "kind", "section"), MANIFESTS)
def test_kuberay_manifests_have_no_field_that_the_published_apis_lack(name: str, kind: str, section: str) -> None:
    """A misspelt field is dropped without a word by the server, or refused."""
    whole, template = read(name), ("spec", section, "headGroupSpec", "template")
    jsonschema.validate(whole, kuberay.manifest(kind))
    cluster = whole["spec"][section]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        _check_pod(group["template"])
    for place, wrong in ((("spec", section), "authOption"), (template, "spek"), (("spec",), "entryPoint")):
        broken = read(name)
        reduce(getitem, place, broken)[wrong] = "x"
        with pytest.raises(jsonschema.ValidationError, match=wrong):
            jsonschema.validate(broken, kuberay.manifest(kind))
    broken = read(name)
    reduce(getitem, (*template, "spec"), broken)["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        _check_pod(reduce(getitem, template, broken))


CRDS = Path(os.environ.get("LSAT_RAY_CRDS", ROOT.parent / ".crds"))
"""Folder of the CRD files that KubeRay publishes."""


@pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's published CRD files are not here: make crds")
@pytest.mark.parametrize(("name", "kind", "section"), MANIFESTS)
def test_kuberay_manifests_pass_the_published_crds(name: str, kind: str, section: str) -> None:
    schema = kuberay.published(CRDS / f"ray.io_{kind.lower()}s.yaml")
    jsonschema.validate(read(name), schema)
    for place, wrong in ((("spec", section), "authOption"), (("spec", section, "headGroupSpec", "template"), "spek")):
        broken = read(name)
        reduce(getitem, place, broken)[wrong] = "x"
        with pytest.raises(jsonschema.ValidationError, match=wrong):
            jsonschema.validate(broken, schema)


SMALL_CRD = """
spec:
  versions:
    - {name: v1alpha1, schema: {openAPIV3Schema: {type: object}}}
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          required: [spec]
          properties:
            apiVersion: {type: string}
            metadata: {type: object}
            spec:
              type: object
              properties:
                mode: {type: string, enum: [token, disabled]}
                ports: {type: array, items: {type: object, properties: {port: {type: integer, format: int32}}}}
                limits:
                  type: object
                  additionalProperties:
                    anyOf: [{type: integer}, {type: string}]
                    x-kubernetes-int-or-string: true
                extra: {type: object, x-kubernetes-preserve-unknown-fields: true}
                empty: {type: object}
"""


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        ({"mode": "token", "ports": [{"port": 1}], "limits": {"cpu": 1, "memory": "2Gi"}, "extra": {"any": 1}}, None),
        ({"mood": "token"}, "mood"),
        ({"mode": "tokens"}, "tokens"),
        ({"ports": [{"port": "1"}]}, "integer"),
        ({"ports": [{"prot": 1}]}, "prot"),
        ({"limits": {"cpu": [1]}}, "not valid under any"),
        ({"empty": {"any": 1}}, "any"),
    ],
)
def test_a_crd_is_read_as_a_server_reads_it(spec: dict[str, Any], refused: str | None, tmp_path: Path) -> None:
    file = tmp_path / "crd.yaml"
    file.write_text(SMALL_CRD)
    whole = {"apiVersion": "x/v1", "metadata": {"name": "x", "labels": {"a": "b"}}, "spec": spec}
    if refused is None:
        jsonschema.validate(whole, kuberay.published(file))
        return
    with pytest.raises(jsonschema.ValidationError, match=refused):
        jsonschema.validate(whole, kuberay.published(file))


@pytest.mark.parametrize(("name", "kind", "section"), MANIFESTS)
def test_rays_own_loader_finds_in_a_manifest_what_its_pods_have(name: str, kind: str, section: str) -> None:
    """The loader of Ray's autoscaler, which runs in the head pod: a group that it misreads is never scaled up."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = read(name)["spec"][section]
    assert cluster["enableInTreeAutoscaling"]
    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "y"}, "spec": cluster})
    types = config["available_node_types"]
    assert types.pop(config["head_node_type"])["resources"]["CPU"] == 0
    for group in cluster["workerGroupSpecs"]:
        found = types.pop(group["groupName"])
        assert found["resources"] == {"CPU": 7, "GPU": 1, "memory": 24 * 2**30}
        assert (found["min_workers"], found["max_workers"]) == (group["minReplicas"], group["maxReplicas"])
    assert not types


@pytest.mark.parametrize(("name", "kind", "section"), MANIFESTS)
def test_kuberay_manifests_have_nothing_that_the_operator_refuses(name: str, kind: str, section: str) -> None:
    """What a schema cannot say: the server takes such a manifest, and the operator then does nothing with it."""
    assert list(kuberay.refusals(read(name))) == []
    head, worker = ("spec", section, "headGroupSpec"), ("spec", section, "workerGroupSpecs", 0)
    for place, field, wrong, words in (
        (("metadata",), "name", "l" * 48, "at most 47"),
        (("metadata",), "name", "Lsat_ray", "DNS-1035"),
        (("spec", section), "rayVersion", "2.51.1", "2.52 or later"),
        ((*head, "template", "spec"), "containers", [], "head: at least one container"),
        ((*worker, "rayStartParams"), "labels", "spot=yes", "gpu: labels belong"),
        (worker, "minReplicas", 3, "gpu: minReplicas above"),
    ):
        broken = read(name)
        reduce(getitem, place, broken)[field] = wrong
        (line,) = kuberay.refusals(broken)
        assert words in line
    broken = read(name)
    broken["spec"][section]["workerGroupSpecs"] *= 2
    assert list(kuberay.refusals(broken)) == ["two worker groups of one name"]
    if kind == "RayJob":
        for field, wrong, words in (
            ("runtimeEnvYAML", "env_vars", "no mapping"),
            ("shutdownAfterJobFinishes", False, "means nothing"),
        ):
            broken = read(name)
            broken["spec"][field] = wrong
            (line,) = kuberay.refusals(broken)
            assert words in line


def _check_pod(template: Any) -> None:
    """Check a pod template against Kubernetes' own published schema, unknown fields refused."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_service_answers_only_with_the_token_that_every_pod_knows() -> None:
    manifest = read("kuberay-rayservice.yaml")["spec"]
    (application,) = yaml.safe_load(manifest["serveConfigV2"])["applications"]
    variable = application["args"]["token_env"]
    cluster = manifest["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        (entry,) = [e for e in container["env"] if e["name"] == variable]
        assert entry["valueFrom"]["secretKeyRef"]["name"] == "lsat-ray-score"


def test_the_job_runs_a_command_that_exists_on_a_config_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML1M", "/logs/ml-1m")
    program, command, *options = shlex.split(read("kuberay-rayjob.yaml")["spec"]["entrypoint"])
    assert program in tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]["scripts"]
    assert command in {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert load(CONFIGS / Path(given["--config"]).name).backbone.path == "Qwen/Qwen3-0.6B"
    assert given["--runs-dir"].startswith("/mnt/shared")


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


def test_the_runtime_env_ships_the_whole_package_and_no_runs() -> None:
    """`runs` without a slash left the package's own room of that name out, and no submitted job could start."""
    from ray._private.runtime_env.packaging import _get_excludes
    from ray.runtime_env import RuntimeEnv

    root = ROOT.parent
    left_out = _get_excludes(root, RuntimeEnv(**read("runtime_env.yaml"))["excludes"])
    package = [
        p for part in ("lsat_ray", "jobs") for p in (root / part).rglob("*") if p.suffix in (".py", ".yaml", ".html")
    ]
    assert package and [p for p in package if left_out(p)] == []
    assert all(left_out(root / name / "x") for name in ("runs", "dist", "build", ".venv", ".git"))
