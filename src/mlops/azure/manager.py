"""Calls of Azure Resource Manager that azure-ai-ml does not have.

Autoscaling of a deployment is a setting of Azure Monitor. The retention of collected rows is a rule
of the storage account, created by the ARM template.
"""

from dataclasses import dataclass
from typing import Any

from azure.core.rest import HttpRequest

from mlops.azure.workspace import Workspace

AUTOSCALE = "Microsoft.Insights/autoscalesettings"
POLICY = "managementPolicies/default"
VERSIONS = {AUTOSCALE: "2022-10-01", POLICY: "2023-01-01"}  # of the API


@dataclass(frozen=True)
class Scale:
    """Bounds for the number of a deployment's instances, and the load that changes it."""

    least: int
    most: int
    quiet: int  # percent of CPU time, below which one instance is removed
    busy: int  # above which one is added
    minutes: int  # duration of the load, and wait until the next change


def ask(workspace: Workspace, method: str, path: str, version: str, body: Any = None) -> Any:
    """Return the answer to one call, None when there is no such resource."""
    url = workspace.manager.format_url(path)
    request = HttpRequest(method, url, params={"api-version": version}, json=body)
    answer = workspace.manager.send_request(request)
    if answer.status_code == 404:
        return None
    answer.raise_for_status()
    return answer.json() if answer.content else None


def _setting(endpoint: str, deployment: str, scope: str) -> str:
    group = scope.split("/providers/")[0]
    return f"{group}/providers/{AUTOSCALE}/{endpoint}-{deployment}"


def set_scale(
    workspace: Workspace, scope: str, endpoint: str, deployment: str, location: str, scale: Scale
) -> None:
    """Let Azure Monitor scale a deployment of the workspace `scope`.

    Raises DigitsError when Azure denies it.
    """
    target = f"{scope}/onlineEndpoints/{endpoint}/deployments/{deployment}"

    def rule(operator: str, percent: int, direction: str) -> dict[str, Any]:
        minutes = f"PT{scale.minutes}M"
        trigger = {
            "metricName": "CpuUtilizationPercentage",
            "metricResourceUri": target,
            "timeGrain": "PT1M",
            "timeWindow": minutes,
            "statistic": "Average",
            "timeAggregation": "Average",
            "operator": operator,
            "threshold": percent,
        }
        action = {"direction": direction, "type": "ChangeCount", "value": "1", "cooldown": minutes}
        return {"metricTrigger": trigger, "scaleAction": action}

    least = str(scale.least)
    profile = {
        "name": "load",
        "capacity": {"minimum": least, "default": least, "maximum": str(scale.most)},
        "rules": [
            rule("GreaterThan", scale.busy, "Increase"),
            rule("LessThan", scale.quiet, "Decrease"),
        ],
    }
    properties = {"enabled": True, "targetResourceUri": target, "profiles": [profile]}
    body = {"location": location, "properties": properties}
    ask(workspace, "PUT", _setting(endpoint, deployment, scope), VERSIONS[AUTOSCALE], body)


def remove_scale(workspace: Workspace, scope: str, endpoint: str, deployment: str) -> None:
    """Delete a deployment's setting, if there is one."""
    ask(workspace, "DELETE", _setting(endpoint, deployment, scope), VERSIONS[AUTOSCALE])


def kept_days(workspace: Workspace, account: str, folder: str) -> int | None:
    """Return the number of days that a storage account keeps blobs in CONTAINER/FOLDER.

    None means for ever. `account` is its resource id.
    """
    found = ask(workspace, "GET", f"{account}/{POLICY}", VERSIONS[POLICY])
    days = []
    for rule in found["properties"]["policy"]["rules"] if found else ():
        prefixes = rule["definition"]["filters"].get("prefixMatch", [""])
        deleting = rule["definition"]["actions"].get("baseBlob", {}).get("delete", {})
        if rule.get("enabled", True) and any(map(folder.startswith, prefixes)):
            days.append(deleting.get("daysAfterModificationGreaterThan"))
    return min((int(one) for one in days if one is not None), default=None)
