"""The fields of KubeRay's v1 API that the manifests use, as JSON Schema; an unknown field is an error.

Names and types are those of the generated field reference of KubeRay 1.6 (docs.ray.io, "KubeRay CRD API reference");
what a template holds is Kubernetes' own.
"""

from __future__ import annotations

from typing import Any


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
