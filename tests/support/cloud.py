"""Emulated `az` and `gh`: small executables that share a state and record their calls.

They know the commands that the project uses, answer in the form of the real ones, and refuse
anything else as those do. Options were checked against Azure CLI 2.91.
"""

from __future__ import annotations

import io
import json
import os
import sys

from arm import Deployment

TYPE_CHECKING = False
if TYPE_CHECKING:  # what is started often should start fast
    import subprocess
    from pathlib import Path
    from typing import Any
HERE = __file__.rpartition("/")[0]
PREFIX = "repo:octo@12/digits@34"
SCRIPT = """#!{python} -IS
import sys
sys.path[:0] = {path!r}
import cloud
sys.exit(cloud.{name}(sys.argv[1:], {state!r}))
"""
MADE: dict[str, tuple[Deployment, dict[str, Any]]] = {}  # by what was asked for
FLAGS = ("--yes", "--deleted", "--all")
# Seen in SoftEther-Web#37 and desktop#17182.
UPGRADE = "Upgrade to GitHub Pro or make this repository public to enable this feature."
GONE = "(ResourceGroupNotFound) Resource group could not be found."


class Cloud:
    """The state, and the executables in a folder for PATH."""

    def __init__(self, folder: Path) -> None:
        """Write the executables; nobody has connected anything yet."""
        self.bin, self.path = folder / "bin", folder / "state.json"
        self.bin.mkdir(parents=True)
        for name in ("az", "gh"):
            text = SCRIPT.format(
                python=sys.executable,
                path=[HERE],
                name=name,
                state=str(self.path),
            )
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.change(
            calls=[], fail={}, groups={}, stack=None, purged=[], vaults=[], deleted=[],
            endpoints=[], roles=None, credentials=None, login=True, gh=True,
            variables={}, environments={}, repository={}, plan="free",
            workflows=[{"name": "monitor", "state": "active"}],
        )  # fmt: skip

    @property
    def state(self) -> dict[str, Any]:
        """All that the executables know."""
        return json.loads(self.path.read_text("utf-8")) if self.path.exists() else {}

    def change(self, **values: Any) -> None:
        """Change some of it."""
        self.path.write_text(json.dumps(self.state | values))

    def run(
        self, command: tuple[str, ...], seconds: int | None
    ) -> subprocess.CompletedProcess[str] | None:
        """Answer as az.execute does, without starting `az` and `gh`."""
        import contextlib
        import shutil
        import subprocess

        if shutil.which(command[0]) is None:
            return None
        if command[0] not in ("az", "gh"):
            return subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        emulated = {"az": az, "gh": gh}[command[0]]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = emulated(list(command[1:]), str(self.path))
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())

    def calls(self, *words: str) -> list[list[str]]:
        """Return the calls that have all these words, and forget none."""
        return [call for call in self.state["calls"] if set(words) <= set(call)]


def read(file: str) -> Any:
    """Return a file's JSON."""
    with open(file, encoding="utf-8") as stream:  # noqa: PTH123
        return json.load(stream)


def write(file: str, state: dict[str, Any]) -> None:
    """Write the state."""
    with open(file, "w", encoding="utf-8") as stream:  # noqa: PTH123
        json.dump(state, stream)


def options(arguments: list[str]) -> tuple[str, dict[str, list[str]]]:
    """Return the command's words and its options with their values."""
    first = next((i for i, part in enumerate(arguments) if part.startswith("-")), len(arguments))
    words, given, name = " ".join(arguments[:first]), {}, ""
    for part in arguments[first:]:
        if part.startswith("--"):
            name = part
            given[name] = [] if name not in FLAGS else ["yes"]
        else:
            given[name].append(part)
    return words, given


def deployed(state: dict[str, Any]) -> tuple[Deployment, dict[str, Any]]:
    """Return what the stack made, and its outputs."""
    stack = state["stack"]
    key = json.dumps(stack)
    if key not in MADE:
        made = Deployment(read(stack["template"]), stack["parameters"], stack["group"])
        MADE[key] = (made, made.run())
    return MADE[key]


def assignments(state: dict[str, Any]) -> list[dict[str, str]]:
    """Return the role assignments, as `az role assignment list` does, with the client's id."""
    if state["roles"] is not None:
        return state["roles"]
    made, _ = deployed(state)
    names = {guid: name for name, guid in made.f_variables("roles").items()}
    clients = {}
    for place, one in made.resources.items():
        if one["type"] == "Microsoft.ManagedIdentity/userAssignedIdentities":
            ids = made.f_reference(place, one["apiVersion"])
            clients[ids["principalId"]] = ids["clientId"]
    return [
        {
            "id": place,
            "roleDefinitionName": names[one["properties"]["roleDefinitionId"].rsplit("/", 1)[1]],
            # Azure gives ids back with the case of its own choice.
            "scope": one.get("scope", made.group).replace("/resourceGroups/", "/resourcegroups/"),
            "client": clients.get(one["properties"]["principalId"], "person"),
        }
        for place, one in made.resources.items()
        if one["type"] == "Microsoft.Authorization/roleAssignments"
    ]


def credentials(state: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Return the federated credentials by identity."""
    if state["credentials"] is not None:
        return state["credentials"]
    made, _ = deployed(state)
    found: dict[str, list[dict[str, str]]] = {}
    for one in made.resources.values():
        if one["type"].endswith("/federatedIdentityCredentials"):
            identity, name = one["name"].split("/")
            found.setdefault(identity, []).append(one["properties"] | {"name": name})
    return found


def az(arguments: list[str], file: str) -> int:
    """Answer as `az` does; return the exit code."""
    state = read(file)
    state["calls"].append(["az", *arguments])
    # On Windows `az` is az.cmd, and cmd.exe takes these for its own wherever no blank is near.
    assert not set('&|<>^%!"') & set("".join(arguments)), arguments
    words, given = options(arguments)
    code, answer = 0, ""
    if not state["login"]:
        code, answer = 1, "ERROR: Please run 'az login' to setup account."
    elif words in state["fail"]:
        code, answer = 1, f"ERROR: {state['fail'][words]}"
    else:
        try:
            found = _az(words, given, state)
            tsv = given.get("--output") == ["tsv"]
            answer = str(found) if tsv else json.dumps(found)
        except LookupError as error:
            code, answer = 3, f"ERROR: {error.args[0]}"
    write(file, state)
    print(answer, file=sys.stderr if code else sys.stdout)
    return code


def _az(words: str, given: dict[str, list[str]], state: dict[str, Any]) -> Any:
    def one(name: str) -> str:
        (value,) = given[name]
        return value

    stack = state["stack"]
    group = given.get("--resource-group", given.get("--name", [""]))[0]
    if words == "account show":
        return {"id": Deployment.subscription, "tenantId": Deployment.tenant}
    if words == "ad signed-in-user show":
        return "33333333-0000-0000-0000-000000000000"
    if words == "group show":
        if group not in state["groups"]:
            raise LookupError(GONE)
        return {"name": group, "tags": state["groups"][group]}
    if words == "group create":
        state["groups"][group] = dict(tag.split("=") for tag in given["--tags"])
        return {"name": group}
    if words == "group delete":
        del state["groups"][group]
        return None
    if words == "stack group create":
        if group not in state["groups"]:
            raise LookupError(GONE)
        assert given["--deny-settings-mode"] and given["--action-on-unmanage"] and given["--yes"]
        pairs = (pair.split("=", 1) for pair in given["--parameters"])
        parameters = {
            key: int(text) if text.isdigit() else {"true": True, "false": False}.get(text, text)
            for key, text in pairs
        }
        template = f"{os.getcwd()}/{one('--template-file')}"  # noqa: PTH109
        state["stack"] = {"template": template, "parameters": parameters, "group": group}
        return _stack(state)
    if words == "stack group show":
        if stack is None or stack["group"] != group:
            raise LookupError("(DeploymentStackNotFound) The deployment stack was not found.")
        return _stack(state)
    if words == "stack group delete":
        assert given["--action-on-unmanage"] == ["deleteResources"] and given["--yes"]
        made, _ = deployed(state)
        left = [one for one in made.resources if one not in state["deleted"]]
        state["vaults"] += [one for one in left if "/Microsoft.KeyVault/vaults/" in one]
        state["stack"] = None
        return None
    if words == "rest":
        url, query = one("--url"), given["--url-parameters"]
        assert query[0].startswith("api-version=")
        if url.removesuffix("Endpoints").rpartition("/")[0] in state["deleted"]:
            raise LookupError("Not Found(ResourceNotFound)")
        if one("--method") == "get":
            kind = "batch" if url.endswith("/batchEndpoints") else "digits"
            batch = [name for name in state["endpoints"] if "batch" in name]
            names = [n for n in state["endpoints"] if (n in batch) == (kind == "batch")]
            return {"value": [{"name": name} for name in names]}
        if "Endpoints/" in url:
            state["endpoints"].remove(url.rpartition("/")[2])
            return None
        assert query[1:] == ["forceToPurge=true"]
        state["deleted"].append(url)
        return None
    if words == "resource wait":
        return None
    if words == "resource list":
        return [] if stack is None else [{"type": "?", "name": "?"}]
    if words == "keyvault list-deleted":
        return [
            {"name": place.split("/")[-1], "properties": {"vaultId": place}}
            for place in state["vaults"]
            if place.split("/")[-1] not in state["purged"]
        ]
    if words == "keyvault purge":
        state["purged"].append(one("--name"))
        return None
    if stack is None:
        raise LookupError("(ResourceNotFound) The Resource was not found.")
    made, _ = deployed(state)
    if words in ("resource show", "resource delete"):
        place = one("--ids")
        if place in state["deleted"] or place not in made.resources:
            raise LookupError("(ResourceNotFound) The Resource was not found.")
        if words == "resource show":
            return {"id": place}
        state["deleted"].append(place)
        state["vaults"] += [place] if "/Microsoft.KeyVault/vaults/" in place else []
        return None
    if words == "identity list":
        assert group == made.name
        return [
            {"id": place, "name": row["name"]} | made.f_reference(place, row["version"])
            for place, row in made.resources.items()
            if row["type"] == "Microsoft.ManagedIdentity/userAssignedIdentities"
        ]
    if words == "identity federated-credential list":
        return credentials(state)[one("--identity-name")]
    if words == "role assignment list":
        assert given["--all"]
        return [row for row in assignments(state) if row["client"] == one("--assignee")]
    raise LookupError(f"'{words}' is misspelled or not recognized by the system.")


def _stack(state: dict[str, Any]) -> dict[str, Any]:
    made, outputs = deployed(state)
    # Azure changes the case of the first letters, as if the names were in camel case.
    cased = {
        name[:4].lower() + name[4:]: {"type": "String", "value": v} for name, v in outputs.items()
    }
    resources = [{"id": place, "status": "managed"} for place in reversed(made.resources)]
    return {"name": "digits", "provisioningState": "succeeded"} | {
        "properties": {"outputs": cased, "resources": resources}
    }


def gh(arguments: list[str], file: str) -> int:
    """Answer as `gh` does; return the exit code."""
    state = read(file)
    state["calls"].append(["gh", *arguments])
    code, answer = 0, ""
    if not state["gh"]:
        code, answer = 4, "To get started with GitHub CLI, please run:  gh auth login"
    elif arguments[:2] == ["variable", "list"]:
        answer = json.dumps([{"name": k, "value": v} for k, v in state["variables"].items()])
    elif arguments[:2] == ["variable", "set"]:
        state["variables"][arguments[2]] = arguments[arguments.index("--body") + 1]
    elif arguments[:2] == ["variable", "delete"]:
        del state["variables"][arguments[2]]
    else:
        assert arguments[0] == "api"
        code, answer = _api(arguments[1:], state)
    write(file, state)
    print(answer, file=sys.stderr if code else sys.stdout)
    return code


def _api(arguments: list[str], state: dict[str, Any]) -> tuple[int, str]:
    environments = state["environments"]
    place = next(part for part in arguments if part.startswith("repos/"))
    name = place.partition("/environments/")[2].partition("/")[0]
    if place.endswith("/customization/sub"):
        return 0, json.dumps({"sub_claim_prefix": PREFIX, "use_default": True})
    if place.count("/") == 2:
        facts = {"default_branch": "main", "has_issues": True, "private": False}
        return 0, json.dumps(facts | state["repository"])
    if place.endswith("/rulesets"):
        if state["plan"] == "free" and state["repository"].get("private"):
            return 1, f"gh: {UPGRADE} (HTTP 403)"
        return 0, "[]"
    if place.endswith("/actions/workflows"):
        return 0, json.dumps({"workflows": state["workflows"]})
    if place.endswith("/environments"):
        rows = [
            {"name": key, "deployment_branch_policy": None if limit is None else {"custom": True}}
            for key, limit in environments.items()
        ]
        return 0, json.dumps({"environments": rows})
    if "PUT" in arguments:
        limited = "deployment_branch_policy[custom_branch_policies]=true" in arguments
        environments[name] = (environments.get(name) or []) if limited else None
        return 0, "{}"
    if place.endswith("/deployment-branch-policies"):
        if environments.get(name) is None:
            return 1, "gh: Not Found (HTTP 404)"
        if "POST" in arguments:
            (given,) = (part for part in arguments if part.startswith("name="))
            environments[name].append(given.removeprefix("name="))
            return 0, "{}"
        rows = [{"name": one} for one in environments[name]]
        return 0, json.dumps({"branch_policies": rows})
    return 1, "gh: Not Found (HTTP 404)"
