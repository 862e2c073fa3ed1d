"""What `digits deploy apply` would change, with the required quota and the cost."""

from collections.abc import Iterator

from azure.ai.ml.constants._deployment import SmallSKUs
from azure.core.exceptions import HttpResponseError

from core.errors import DigitsError
from mlops.azure import revisions
from mlops.azure.endpoint import Target
from mlops.azure.errors import explain_error
from mlops.azure.revisions import Release
from mlops.azure.workspace import cores
from mlops.deploy import release

HOURS_A_DAY = 24
REFUSED = "apply will refuse"  # in a line of the plan


def lines(target: Target, new: Release) -> Iterator[str]:
    """Yield the lines of the plan; change nothing."""
    settings, client = target.settings, target.client
    endpoint = target.get()
    states = target.deployments() if endpoint else {}
    live = revisions.serving(endpoint, states) if endpoint else None
    yield f"endpoint     {target.name}: {'exists' if endpoint else 'to be created'}"
    access = endpoint.public_network_access.lower() if endpoint else None
    if access != target.access:
        yield f"access       {access or 'none'} -> public access {target.access}"
    for name, (has, wanted) in target.differing(endpoint).items():
        yield f"{name:13}{has} -> {wanted}: {REFUSED}"
    try:
        days = target.require_retention()
        kept = f"kept {days} days" if days else "kept until destroy"
    except DigitsError as error:
        kept = f"{REFUSED}: {error}"
    names = settings.collections
    yield f"collected    {', '.join((*names, kept)) if names else 'nothing'}"
    if live == new.name and "paused" not in endpoint.tags:
        yield f"revision     {live} is live already: nothing to change"
        return
    yield f"revision     {live or 'none'} -> {new.name}, strategy {settings.strategy}"
    yield f"model        package {new.package_hash}, commit {new.tags['commit'][:12]}"
    reasons = release.gate_reasons(target.commit(endpoint))
    yield f"gate         {'failed: ' + '; '.join(reasons) if reasons else 'passed'}"
    yield f"environment  {settings.image}, version {new.environment_hash}"
    scale = settings.autoscale
    most = f" to {scale.most}" if scale else ""
    yield f"instances    {settings.instance_count}{most} x {settings.instance_type}"
    if settings.instance_type.lower() in SmallSKUs:  # the SDK warns of them too
        yield "size         Azure's minimum for general use is Standard_DS3_v2"
    beside = 1 if live and settings.strategy == "blue_green" else 0
    removed = [name for name in states if name not in (live, new.name)]
    if removed:
        yield f"removed      {', '.join(removed)}"
    try:
        each, family, free = cores(client, settings.instance_type)
        needed = release.reserved(each, settings.instance_count)
        known = "unknown" if free is None else f"{free:g}"
        busy = f", {release.reserved(each, scale.most)} under load" if scale else ""
        gone = removed if beside or not live else [*removed, live]
        freed = f"; deleted first: {' and '.join(gone)}" if gone else ""
        yield f"quota        {needed} cores of {family} needed{busy}, {known} free{freed}"
    except (DigitsError, HttpResponseError) as error:  # some roles may not read the quota
        yield f"quota        unknown: {explain_error(error)[:200]}"
    steps = [f"{percent} %" for percent in settings.traffic_percent]
    if not live:
        steps = ["100 %"]
    elif not beside:
        steps = ["no service while it is replaced", "100 %"]
    yield f"traffic      {', '.join(steps)}"
    price = settings.price_an_hour
    cost = "unknown; set azure.price_an_hour"
    if price:
        cost = f"{price * HOURS_A_DAY * settings.instance_count * (1 + beside):.2f}"
        cost += ", including the old revision kept for rollback" if beside else ""
        cost += f", up to {scale.most / settings.instance_count:g} times that" if scale else ""
    yield f"cost a day   {cost}"
