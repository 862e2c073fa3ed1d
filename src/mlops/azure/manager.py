"""Calls of Azure Resource Manager that azure-ai-ml does not have.

Autoscaling of a deployment, and where an endpoint's logs go, are settings of Azure Monitor. The
retention of collected rows is a rule of the storage account, created by the ARM template.
"""

from collections.abc import Iterator
from typing import Any

from azure.core.exceptions import HttpResponseError
from azure.core.rest import HttpRequest

from mlops.azure.errors import explain_error
from mlops.azure.workspace import Workspace

AUTOSCALE = "Microsoft.Insights/autoscalesettings"
DIAGNOSTICS = "Microsoft.Insights/diagnosticSettings"
POLICY = "managementPolicies/default"
API_VERSIONS = {AUTOSCALE: "2022-10-01", DIAGNOSTICS: "2021-05-01-preview", POLICY: "2023-01-01"}
# The logs of an online endpoint: learn.microsoft.com/azure/azure-monitor/reference/supported-logs/
# microsoft-machinelearningservices-workspaces-onlineendpoints-logs
LOGS = ("AmlOnlineEndpointConsoleLog", "AmlOnlineEndpointEventLog", "AmlOnlineEndpointTrafficLog")
REFUSED = {*range(400, 500)} - {401, 408, 429}  # permanent: another call gets the same answer
LOG_ANALYTICS = "Microsoft.OperationalInsights/workspaces/digits"  # of the ARM template


def ask(workspace: Workspace, method: str, path: str, version: str, body: Any = None) -> Any:
    """Return the answer to one call, None when there is no such resource."""
    url = workspace.manager.format_url(path)
    params = {} if "api-version=" in url else {"api-version": version}
    answer = workspace.manager.send_request(HttpRequest(method, url, params=params, json=body))
    if answer.status_code == 404:
        return None
    answer.raise_for_status()
    return answer.json() if answer.content else None


def listed(workspace: Workspace, path: str, version: str) -> Iterator[Any]:
    """Yield the resources of a list, page after page."""
    while path:
        answer = ask(workspace, "GET", path, version) or {"value": []}
        yield from answer["value"]
        path = answer.get("nextLink") or ""


def refusal(workspace: Workspace, method: str, path: str, version: str, body: Any = None) -> str:
    """Make one call; return why Azure permanently refuses it, an empty text if it succeeds."""
    try:
        found = ask(workspace, method, path, version, body)
    except HttpResponseError as error:
        if error.status_code not in REFUSED:
            raise
        return explain_error(error)
    return "" if method == "DELETE" or found is not None else "not found"


def _setting(target: str) -> str:
    group, _, _, _, endpoint, _, deployment = target.rsplit("/", 6)
    return f"{group.split('/providers/')[0]}/providers/{AUTOSCALE}/{endpoint}-{deployment}"


def set_scale(
    workspace: Workspace, target: str, location: str, least: int, scale: tuple[int, int, int, int]
) -> None:
    """Let Azure Monitor scale the deployment `target`, a resource id, from `least` instances up.

    `scale` is that of a DeploymentSpec. Raises HttpResponseError when Azure denies it.
    """
    most, quiet, busy, duration = scale

    def rule(operator: str, percent: int, direction: str) -> dict[str, Any]:
        minutes = f"PT{duration}M"
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

    profile = {
        "name": "load",
        "capacity": {"minimum": str(least), "default": str(least), "maximum": str(most)},
        "rules": [rule("GreaterThan", busy, "Increase"), rule("LessThan", quiet, "Decrease")],
    }
    properties = {"enabled": True, "targetResourceUri": target, "profiles": [profile]}
    body = {"location": location, "properties": properties}
    ask(workspace, "PUT", _setting(target), API_VERSIONS[AUTOSCALE], body)


def remove_scale(workspace: Workspace, target: str) -> str:
    """Delete a deployment's setting, if there is one; return why Azure refuses that."""
    return refusal(workspace, "DELETE", _setting(target), API_VERSIONS[AUTOSCALE])


def set_logs(workspace: Workspace, endpoint: str, on: bool) -> str:
    """Send an online endpoint's logs to Log Analytics, or stop; return why Azure refuses that.

    `endpoint` is its resource id. Azure keeps this setting when the endpoint is deleted.
    """
    group = endpoint.split("/providers/")[0]
    logs = [{"category": name, "enabled": True} for name in LOGS]
    properties = {"workspaceId": f"{group}/providers/{LOG_ANALYTICS}", "logs": logs}
    place = f"{endpoint}/providers/{DIAGNOSTICS}/digits"
    method, body = ("PUT", {"properties": properties}) if on else ("DELETE", None)
    return refusal(workspace, method, place, API_VERSIONS[DIAGNOSTICS], body)


def kept_days(workspace: Workspace, account: str, folder: str) -> int | None:
    """Return the number of days that a storage account keeps blobs in CONTAINER/FOLDER.

    None means for ever. `account` is its resource id.
    """
    found = ask(workspace, "GET", f"{account}/{POLICY}", API_VERSIONS[POLICY])
    days = []
    for rule in found["properties"]["policy"]["rules"] if found else ():
        prefixes = rule["definition"]["filters"].get("prefixMatch", [""])
        deleting = rule["definition"]["actions"].get("baseBlob", {}).get("delete", {})
        if rule.get("enabled", True) and any(map(folder.startswith, prefixes)):
            days.append(deleting.get("daysAfterModificationGreaterThan"))
    return min((int(one) for one in days if one is not None), default=None)
