"""What Azure would make of an ARM template: its expressions evaluated, its loops unrolled."""

from __future__ import annotations

import hashlib
import re

TYPE_CHECKING = False
if TYPE_CHECKING:  # cloud.py's commands should start fast
    from typing import Any

GROUP = "/subscriptions/{subscription}/resourceGroups/{name}"
TOKEN = re.compile(r"\s*('(?:[^']|'')*'|\d+|[A-Za-z_][\w]*|[().,\[\]])")


class Deployment:
    """A template with parameters, in a resource group; `resources` by id once `run`."""

    subscription = "11111111-0000-0000-0000-000000000000"
    tenant = "22222222-0000-0000-0000-000000000000"

    def __init__(
        self, template: dict[str, Any], parameters: dict[str, Any], name: str = "group"
    ) -> None:
        """Nothing is made yet."""
        self.template, self.parameters, self.name = template, parameters, name
        self.resources: dict[str, dict[str, Any]] = {}
        self.index = 0

    def run(self) -> dict[str, Any]:
        """Make the resources; return the outputs. Raises for what names nothing that exists."""
        unknown = set(self.parameters) - set(self.template["parameters"])
        assert not unknown, f"no such parameter: {unknown}"
        loops: dict[str, list[str]] = {}
        waiting: list[tuple[str, dict[str, Any], int]] = []
        for resource in self.template["resources"]:
            count = self.value(resource.get("copy", {}).get("count", 1))
            for self.index in range(count):
                if not self.value(resource.get("condition", True)):
                    continue
                name, kind = self.value(resource["name"]), resource["type"]
                scope = self.value(resource.get("scope", self.group))
                place = path(scope, kind, name.split("/"))
                assert place not in self.resources, f"made twice: {place}"
                self.resources[place] = {"type": kind, "version": resource["apiVersion"]}
                waiting.append((place, resource, self.index))
                loops.setdefault(resource.get("copy", {}).get("name", place), []).append(place)
        for place, resource, self.index in waiting:
            needs = [self.value(one) for one in resource.get("dependsOn", ())]
            for one in needs:
                assert one in loops or one in self.resources, f"{place} depends on {one}: absent"
            made = {
                key: self.value(part)
                for key, part in resource.items()
                if key not in ("copy", "dependsOn")
            }
            needed = [each for one in needs for each in loops.get(one, [one])]
            self.resources[place] |= made | {"needs": needed}
            for one in named(made.get("properties", {})):
                assert one in self.resources, f"{place} names {one}: absent"
                assert one in needed, f"{place} names {one}, but does not wait for it"
            if "scope" in made:
                assert made["scope"] in self.resources, f"{made['scope']}: absent"
                assert made["scope"] in needed, f"{place} does not wait for {made['scope']}"
        return {key: self.value(row["value"]) for key, row in self.template["outputs"].items()}

    @property
    def group(self) -> str:
        """The group's id."""
        return GROUP.format(subscription=self.subscription, name=self.name)

    def value(self, raw: Any) -> Any:
        """Return a part of the template with its expressions evaluated."""
        if isinstance(raw, dict):
            return {self.value(key): self.value(part) for key, part in raw.items()}
        if isinstance(raw, list):
            return [self.value(part) for part in raw]
        if isinstance(raw, str) and raw.startswith("[") and raw.endswith("]"):
            tokens, end = [], 1
            while end < len(raw) - 1:
                match = TOKEN.match(raw, end)
                assert match, f"no expression: {raw}"
                tokens.append(match[1])
                end = match.end()
            found = self.expression(tokens)
            assert not tokens, f"more than an expression: {raw}"
            return found
        return raw

    def expression(self, tokens: list[str]) -> Any:
        """Take one expression from the front of a list of tokens; return its value."""
        first = tokens.pop(0)
        if first.startswith("'"):
            found: Any = first[1:-1].replace("''", "'")
        elif first.isdigit():
            found = int(first)
        else:
            assert tokens.pop(0) == "(", f"{first}: not a function's call"
            arguments = []
            while tokens[0] != ")":
                arguments.append(self.expression(tokens))
                if tokens[0] == ",":
                    tokens.pop(0)
            tokens.pop(0)
            found = getattr(self, f"f_{first}")(*arguments)
        while tokens and tokens[0] in ".[":
            if tokens.pop(0) == ".":
                found = found[tokens.pop(0)]
            else:
                found = found[self.expression(tokens)]
                assert tokens.pop(0) == "]"
        return found

    def f_variables(self, name: str) -> Any:
        """A variable's value."""
        return self.value(self.template["variables"][name])

    def f_parameters(self, name: str) -> Any:
        """A parameter's value, given or by default."""
        parameter = self.template["parameters"][name]
        given = self.parameters.get(name, self.value(parameter.get("defaultValue")))
        kind = {"string": str, "bool": bool, "int": int}[parameter["type"]]
        assert isinstance(given, kind), f"parameter {name}: {given!r} is no {kind.__name__}"
        return given

    def f_resourceId(self, kind: str, *names: str) -> str:  # noqa: N802
        """The id of a resource of the group."""
        return path(self.group, kind, list(names))

    def f_subscriptionResourceId(self, kind: str, *names: str) -> str:  # noqa: N802
        """The id of a resource of the subscription."""
        return path(f"/subscriptions/{self.subscription}", kind, list(names))

    def f_reference(self, place: str, version: str) -> dict[str, str]:
        """What only a made identity or workspace knows."""
        assert self.resources[place]["version"] == version, place
        return {key: guid(place + key) for key in IDS[self.resources[place]["type"]]}

    def f_resourceGroup(self) -> dict[str, str]:  # noqa: N802
        """The group."""
        return {"id": self.group, "name": self.name, "location": "westeurope"}

    def f_subscription(self) -> dict[str, str]:
        """The subscription."""
        return {"subscriptionId": self.subscription, "tenantId": self.tenant}

    def f_uniqueString(self, *parts: str) -> str:  # noqa: N802
        """13 characters from texts, the first a letter."""
        return "u" + hashlib.sha256("".join(parts).encode()).hexdigest()[:12]

    def f_guid(self, *parts: str) -> str:
        """A GUID from texts."""
        return guid("-".join(parts))

    def f_format(self, form: str, *parts: str) -> str:
        """A text with parts put in."""
        return form.format(*parts)

    def f_if(self, condition: bool, one: Any, other: Any) -> Any:
        """One of two values."""
        return one if condition else other

    def f_copyIndex(self) -> int:  # noqa: N802
        """The number of the loop's turn."""
        return self.index

    def f_length(self, value: Any) -> int:
        """How many parts."""
        return len(value)

    def f_greater(self, left: int, right: int) -> bool:
        """Whether the first is larger."""
        return left > right

    def f_max(self, *values: int) -> int:
        """The largest."""
        return max(values)

    def f_empty(self, value: Any) -> bool:
        """Whether there is nothing."""
        return not value

    def f_not(self, value: bool) -> bool:
        """The opposite."""
        return not value


IDS = {  # by type of resource
    "Microsoft.ManagedIdentity/userAssignedIdentities": ("principalId", "clientId"),
    "Microsoft.MachineLearningServices/workspaces": ("workspaceId",),
}


def guid(text: str) -> str:
    """Return a GUID that stands for a text."""
    digits = hashlib.sha256(text.encode()).hexdigest()
    return "-".join(digits[i:j] for i, j in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))


def path(scope: str, kind: str, names: list[str]) -> str:
    """Return the id of a resource below a scope."""
    provider, *types = kind.split("/")
    assert len(types) == len(names), f"{kind} needs {len(types)} names, not {names}"
    parts = [part for pair in zip(types, names, strict=True) for part in pair]
    return f"{scope}/providers/{provider}/{'/'.join(parts)}"


def named(value: Any) -> list[str]:
    """Return the ids of resources of the group that stand somewhere in a value."""
    if isinstance(value, dict):
        return [one for part in value.values() for one in named(part)]
    if isinstance(value, list):
        return [one for part in value for one in named(part)]
    ours = isinstance(value, str) and "/resourceGroups/" in value
    return [value] if ours else []
