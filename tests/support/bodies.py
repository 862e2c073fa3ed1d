"""Recorded bodies against the models of the SDK."""

import re
import warnings
from collections.abc import Iterator
from typing import Any

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from azure.ai.ml._restclient.arm_ml_service import models
    from azure.ai.ml._restclient.arm_ml_service._utils.model_base import Model, _deserialize

OBJECTS: list[
    tuple[str, dict[str, Any], dict[str, Any]]
] = [  # the path's end, what is asked by method, what is answered by method
    (r"/workspaces/[^/]+", {}, {"GET": models.Workspace}),
    (r"/datastores/[^/]+", {}, {"GET": models.Datastore}),
    (r"/listSecrets", {}, {"POST": models.DatastoreSecrets}),
    (
        r"/startPendingUpload",
        {"POST": models.PendingUploadRequestDto},
        {"POST": models.PendingUploadResponseDto},
    ),
    (r"/models/[^/]+", {}, {"GET": models.ModelContainer}),
    *(
        (rf"/{kind}/[^/]+/versions/[^/]+", {"PUT": made}, {"GET": made, "PUT": made})
        for kind, made in (
            ("models", models.ModelVersion),
            ("codes", models.CodeVersion),
            ("environments", models.EnvironmentVersion),
            ("data", models.DataVersionBase),
        )
    ),
    *(
        (rf"/{kind}/[^/]+", {"PUT": made}, {"GET": made, "PUT": made})
        for kind, made in (
            ("onlineEndpoints", models.OnlineEndpoint),
            ("deployments", models.OnlineDeployment),
            ("jobs", models.JobBase),
            ("computes", models.ComputeResource),
        )
    ),
    (r"/listkeys", {}, {"POST": models.EndpointAuthKeys}),
    (r"/getLogs", {"POST": models.DeploymentLogsRequest}, {"POST": models.DeploymentLogs}),
    (r"/usages", {}, {"GET": models.Usage}),
    (r"/vmSizes", {}, {"GET": models.VirtualMachineSizeListResult}),
]


def faults_of(value: Any, place: str) -> Iterator[str]:
    """Yield what of a deserialised body its model does not know or could not read."""
    if isinstance(value, Model):
        known = {field._rest_name: name for name, field in value._attr_to_rest_field.items()}
        for key in value:
            if key not in known:
                yield f"{place}.{key} is not in {type(value).__name__}"
            else:
                yield from faults_of(getattr(value, known[key]), f"{place}.{key}")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from faults_of(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from faults_of(inner, f"{place}[]")


def unlike(calls: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Return how recorded bodies differ from the SDK's models, and how many were compared."""
    found, compared = [], 0
    for call in calls:
        kinds = [kind for kind in OBJECTS if re.search(f"{kind[0]}$", call["path"], re.I)]
        bodies = [(call["request"], kinds[-1][1] if kinds else {}, "request")]
        answer, status = call["response"], call["status"]
        if status >= 400:
            found += list(faults_of(_deserialize(models.ErrorResponse, answer), call["path"]))
        elif answer:
            bodies.append((answer, kinds[-1][2] if kinds else {}, "response"))
        for body, methods, which in bodies:
            if body is None or call["method"] not in methods:
                continue
            one = methods[call["method"]]
            listed = body["value"] if "value" in body and one is not models.Workspace else [body]
            if one is models.VirtualMachineSizeListResult:
                listed = [body]
            for part in listed:
                compared += 1
                place = f"{call['method']} {call['path']} {which}"
                found += list(faults_of(_deserialize(one, part), place))
    return found, compared
