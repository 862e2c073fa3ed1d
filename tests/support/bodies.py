"""Recorded bodies against the models of the SDK: names, types and required fields."""

import re
import typing
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


# Required in the model, and yet in no answer: Azure gives secrets by listSecrets alone.
NEVER_SENT = {"AccountKeyDatastoreCredentials.secrets"}


def fits(raw: Any, kind: Any) -> bool:
    """Return whether a JSON value is of the type that a model's field is annotated with."""
    parts, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin is typing.Union:
        return any(fits(raw, part) for part in parts)
    for plain in (str, int, float, bool, dict, list):
        if kind is plain or origin is plain:
            wanted = (int, float) if plain is float else plain
            return isinstance(raw, wanted) and isinstance(raw, bool) == (plain is bool)
    if kind is type(None):
        return raw is None
    return isinstance(raw, (str, dict, Model))  # a model, an enumeration or a date


def faults_of(value: Any, place: str) -> Iterator[str]:
    """Yield what of a deserialised body its model does not know or requires, or could not read."""
    if isinstance(value, Model):
        known = {field._rest_name: name for name, field in value._attr_to_rest_field.items()}
        kinds: dict[str, Any] = {}
        for one in reversed(type(value).__mro__):
            kinds |= vars(one).get("__annotations__", {})
        for key, name in known.items():
            kind = kinds.get(name)
            if key in value and kind and not fits(value[key], kind):
                yield f"{place}.{key} is {value[key]!r}: expected {kind}"
            absent = key not in value and kind and type(None) not in typing.get_args(kind)
            if absent and f"{type(value).__name__}.{name}" not in NEVER_SENT:
                yield f"{place}.{key} is absent: required in {type(value).__name__}"
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
