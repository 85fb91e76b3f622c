"""KubeRay's v1 API as JSON Schema, and what the operator refuses besides.

Two schemas, an unknown field being an error in both. `published` reads the CRD files as KubeRay publishes them: a
megabyte each, which no package ships and `make crds` fetches. `manifest` stands in where they are not at hand: the
fields that our manifests use, by names, types and enumerations of the types from which those files are generated
(`ray-operator/apis/ray/v1/*_types.go`, KubeRay 1.5 to 1.7), those of a cluster and of a service read again in
`helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml` at 02a80a6f; what a template holds is Kubernetes' own there.
The refusals are those of the operator (`controllers/ray/utils/validation.go`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def _fields(required: tuple[str, ...], **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


TEXT, YES, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
GROUP = {
    "rayStartParams": {"type": "object", "additionalProperties": TEXT},
    "template": _fields(("spec",), metadata={"type": "object"}, spec={"type": "object"}),
}
CLUSTER = _fields(
    ("headGroupSpec",),
    rayVersion=TEXT,
    enableInTreeAutoscaling=YES,
    authOptions=_fields((), mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    headGroupSpec=_fields(
        ("template",), serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}, enableIngress=YES, **GROUP
    ),
    workerGroupSpecs={
        "type": "array",
        "items": _fields(
            ("groupName", "minReplicas", "maxReplicas", "template"),
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts={"type": "integer", "minimum": 1},
            **GROUP,
        ),
    },
)
SPECS = {
    "RayJob": _fields(
        (),
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        backoffLimit=COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=YES,
        ttlSecondsAfterFinished=COUNT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        rayClusterSpec=CLUSTER,
    ),
    "RayService": _fields(
        ("rayClusterConfig",), serveConfigV2=TEXT, serveService={"type": "object"}, rayClusterConfig=CLUSTER
    ),
}


def manifest(kind: str) -> dict[str, Any]:
    """Return the schema of a manifest."""
    known = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": {"type": "object"}}
    return _fields(("apiVersion", "kind", "metadata", "spec"), spec=SPECS[kind], **known)


def published(file: Path, version: str = "v1") -> dict[str, Any]:
    """Return the schema by which a server checks what a CRD file describes, `kubectl apply --validate=strict` asked."""
    whole = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (found,) = [v["schema"]["openAPIV3Schema"] for v in whole["spec"]["versions"] if v["name"] == version]
    schema = _closed(found)
    schema["properties"]["metadata"] = {"type": "object"}  # the server's own
    return schema


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a structural schema with the fields that it does not name refused, where it does not keep them."""
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {name: _closed(field) for name, field in schema["properties"].items()}
    for part in ("items", "additionalProperties"):
        if isinstance(schema.get(part), dict):
            closed[part] = _closed(schema[part])
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


SUFFIX = 6
"""Characters that the operator appends to the name of a job or a service to name its cluster."""
LONGEST = 63 - len("-serve-svc") - SUFFIX
"""Characters of a name: the services of the cluster must still be DNS labels."""
TOKEN_FROM = (2, 52)
"""Ray version that knows token mode."""


def refusals(whole: dict[str, Any]) -> Iterator[str]:
    """Yield a line for all that the operator refuses, or leaves without effect, though its fields are right."""
    name, spec = whole["metadata"]["name"], whole["spec"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > LONGEST:
        yield f"name {name}: a DNS-1035 label of at most {LONGEST} characters"
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig")
    if cluster is None:
        yield "a cluster must be described"
        return
    if cluster.get("authOptions", {}).get("mode") == "token":
        version = re.match(r"(\d+)\.(\d+)", cluster.get("rayVersion", ""))
        if version is None or (int(version[1]), int(version[2])) < TOKEN_FROM:
            yield "token mode needs rayVersion 2.52 or later"
    for group in [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]:
        title = group.get("groupName", "head")
        if not group["template"]["spec"].get("containers"):
            yield f"{title}: at least one container"
        if "labels" in group.get("rayStartParams", {}):
            yield f"{title}: labels belong to the group, not to rayStartParams"
        if group.get("minReplicas", 0) > group.get("maxReplicas", 0):
            yield f"{title}: minReplicas above maxReplicas"
    names = [group["groupName"] for group in cluster.get("workerGroupSpecs", [])]
    if len(names) != len(set(names)):
        yield "two worker groups of one name"
    if whole["kind"] == "RayJob" and not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is no mapping"
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished means nothing without shutdownAfterJobFinishes"
