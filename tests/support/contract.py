"""The contract of Azure's management API as two of Microsoft's clients have it; calls against it.

A contract is {"operations": [{path, method, request, responses by status}], "definitions": ...};
the bodies are JSON Schemas. That of the locked Python SDK is read from its generated models and
operations, that of the JavaScript client is printed by contract/contract.mjs.
"""

import enum
import functools
import inspect
import re
import typing
import warnings
from collections import defaultdict
from typing import Any

from jsonschema import Draft202012Validator

with warnings.catch_warnings():  # the SDK's own
    warnings.simplefilter("ignore")
    from azure.ai.ml._restclient.arm_ml_service import models
    from azure.ai.ml._restclient.arm_ml_service.models import _models
    from azure.ai.ml._restclient.arm_ml_service.operations import _operations

Json = dict[str, Any]
# What the Python SDK sends where its own model has text, and what it sends for serverless compute.
DIFFERENCES = r"properties.hash_version: 202208 is not of type 'string'|'resources' was unexpected"
SIMPLE = {str: "string", bool: "boolean", int: "integer", float: "number"}


def closed(properties: Json, required: list[str]) -> Json:
    """Return the schema of an object that has no other properties."""
    kind = {"type": "object", "properties": properties, "required": required}
    return kind | {"additionalProperties": False}


def schema(hint: Any) -> Json:
    """Return the schema of a type annotation of the Python SDK."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union:
        inner = tuple(one for one in inner if one is not type(None))
        named = [one for one in inner if isinstance(one, type) and issubclass(one, enum.Enum)]
        return schema(named[0] if named else inner[0])
    if origin is dict:
        return {"type": "object", "additionalProperties": schema(inner[1])}
    if origin is list:
        return {"type": "array", "items": schema(inner[0])}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):  # Azure ignores the case
        values = "|".join(re.escape(str(one.value)) for one in hint)
        return {"type": "string", "pattern": f"^(?i:{values})$"}
    if isinstance(hint, type) and hint.__module__ == _models.__name__:
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if hint in SIMPLE:
        return {"type": SIMPLE[hint]}
    return {} if hint is Any else {"type": "string"}  # times and durations


def definition(model: Any) -> Json:
    """Return the schema of a model class; a base class stands for those of its kinds."""
    hints = typing.get_type_hints(model, vars(_models) | {"_models": models})
    fields = {
        name: field
        for parent in reversed(model.__mro__)
        for name, field in vars(parent).items()
        if hasattr(field, "_is_discriminator")
    }
    discriminators = [one for one in vars(model).values() if hasattr(one, "_is_discriminator")]
    discriminators = [one for one in discriminators if one._is_discriminator]
    kinds = {value: one.__name__ for value, one in vars(model).get("__mapping__", {}).items()}
    if discriminators and kinds:
        return {"discriminator": discriminators[0]._rest_name_input, "kinds": kinds}
    named = {name: field._rest_name_input or name for name, field in fields.items()}
    needed = [
        named[name]
        for name, field in fields.items()
        # What is never read, as secrets, is required in requests alone.
        if type(None) not in typing.get_args(hints[name])
        and {"read", "create"} <= {*(field._visibility or ("read", "create"))}
    ]
    return closed({named[name]: schema(hints[name]) for name in fields}, needed)


def python_contract() -> Json:
    """Return the contract of the locked Python SDK."""
    found = []
    source = inspect.getsource(_operations)
    requests = {
        name: (path, method)
        for name, path, method in re.findall(
            r'def build_(\w+)_request\(.*?_url = "([^"]+)".*?HttpRequest\(method="(\w+)"',
            source,
            re.S,
        )
    }
    for group in re.split(r"^class \w+Operations\b", source, flags=re.M)[1:]:
        methods: dict[str, str] = defaultdict(str)
        for text in re.split(r"^    (?=def |async def )", group, flags=re.M)[1:]:
            name = re.match(r"def _?(?:begin_)?(\w+?)(?:_initial)?\(", text)
            methods[name[1] if name else ""] += text
        for text in methods.values():
            built = re.search(r"build_(\w+)_request\(", text)
            if built is None or built[1] not in requests:
                continue
            path, method = requests[built[1]]
            sent = re.search(r"Union\[_models\.(\w+), JSON, IO\[bytes\]\]", text)
            listed = re.search(r"_deserialize\(\s*List\[_models\.(\w+)\]", text)
            taken = re.search(r"_deserialize\(\s*_models\.(?!ErrorResponse)(\w+)", text)
            body: Json | None = {"$ref": f"#/$defs/{taken[1]}"} if taken else None
            if listed:
                items = {"type": "array", "items": {"$ref": f"#/$defs/{listed[1]}"}}
                body = closed({"value": items, "nextLink": {"type": "string"}}, ["value"])
            statuses = re.findall(r"status_code not in \[([\d, ]+)\]", text)
            responses: Json = {one: body for part in statuses for one in part.split(", ")}
            responses["default"] = {"$ref": "#/$defs/ErrorResponse"}
            request = {"$ref": f"#/$defs/{sent[1]}"} if sent else None
            one = {"path": path, "method": method, "request": request, "responses": responses}
            found.append(one)
    classes = [one for one in vars(_models).values() if isinstance(one, type)]
    ours = [one for one in classes if one.__module__ == _models.__name__]
    return {"operations": found, "definitions": {one.__name__: definition(one) for one in ours}}


class Contract:
    """What a client knows of the API."""

    def __init__(self, known: Json) -> None:
        """Take a contract as described above."""
        definitions = {name: self.of_kinds(one) for name, one in known["definitions"].items()}
        self.rest = {"$defs": definitions}
        self.operations = []
        for one in known["operations"]:
            pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(one["path"]))
            self.operations.append((re.compile(pattern, re.I), one))
        self.operations.sort(key=lambda pair: pair[1]["path"].count("{"))

    @staticmethod
    def of_kinds(one: Json) -> Json:
        """Return a definition; that of a base class chooses by its discriminator."""
        if "discriminator" not in one:
            return one
        name, kinds = one["discriminator"], one["kinds"]
        chosen = [
            {
                "if": {"properties": {name: {"pattern": f"^(?i:{re.escape(value)})$"}}},
                "then": {"$ref": f"#/$defs/{kind}"},
            }
            for value, kind in kinds.items()
        ]
        values = "|".join(re.escape(value) for value in kinds)
        known = {name: {"type": "string", "pattern": f"^(?i:{values})$"}}
        return {"required": [name], "properties": known, "allOf": chosen}

    def violations(self, call: Json) -> list[str] | None:
        """Return what of a recorded call is against the contract; None if it is not in it."""
        for pattern, operation in self.operations:
            if call["method"] == operation["method"] and pattern.fullmatch(call["path"]):
                return self.against(call, operation)
        return None

    def against(self, call: Json, operation: Json) -> list[str]:
        """Return what of a call is against its operation: its status, what it sends and takes."""
        where = f"{call['method']} {operation['path'].split('/providers/')[-1]}"
        status, responses = str(call["status"]), operation["responses"]
        found = []
        if call["status"] < 400 and status not in responses:
            found.append(f"{where}: status {status}")
        answered = responses.get(status, responses["default"])
        bodies = [("answer", answered, call["response"])]
        if call["status"] < 400:  # what is refused may be anything
            bodies.append(("request", operation["request"], call["request"]))
        for side, body, given in bodies:
            if body is None or given is None:
                continue
            validator = Draft202012Validator(body | self.rest)
            for error in validator.iter_errors(without_nulls(given)):
                found.append(f"{where}: {side}: {error.json_path}: {error.message[:200]}")
        return found


def without_nulls(body: Any) -> Any:
    """Return JSON without nulls, which Azure gives for what is absent."""
    if isinstance(body, dict):
        return {name: without_nulls(one) for name, one in body.items() if one is not None}
    return [without_nulls(one) for one in body] if isinstance(body, list) else body


@functools.cache
def python_client() -> Contract:
    """Return the contract of the locked Python SDK, to check calls against."""
    return Contract(python_contract())


def unlike(calls: list[Json]) -> tuple[list[str], int]:
    """Return how recorded calls differ from what the Python SDK knows, and how many it knows."""
    found = [python_client().violations(call) for call in calls]
    known = [one for one in found if one is not None]
    wrong = {fault for one in known for fault in one if not re.search(DIFFERENCES, fault)}
    return sorted(wrong), len(known)
