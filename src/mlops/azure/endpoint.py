"""One endpoint of a workspace: its traffic, its deployments, and requests to it.

The endpoint's tags record what it serves, and change in the same call as its traffic: `live`,
`previous`, and the specification of each revision.
"""

import dataclasses
import hashlib
import json
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azure.ai.ml.entities import (
    CodeConfiguration,
    DataCollector,
    DeploymentCollection,
    Environment,
    IdentityConfiguration,
    ManagedIdentityConfiguration,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    Model,
    OnlineRequestSettings,
)
from azure.core.exceptions import ResourceNotFoundError

from core.errors import DigitsError
from mlops import git
from mlops.azure import assets, collected, connection, manager, revisions
from mlops.azure.assets import OWNER
from mlops.azure.revisions import ENVIRONMENT, MODEL, DeploymentSpec, Release, stage_code
from mlops.azure.settings import BUSY_STATUS, IN_FLIGHT, MODEL_STATUS, Params
from mlops.azure.workspace import Workspace, empty, quiet, store

SCORED = "scoring/{endpoint}"  # in the workspace's blob store
COST = {"application": "digits"}  # the tag that costs are grouped by, as in the ARM template
BUSY = {"creating", "updating", "deleting", "scaling"}
SETTLE_SECONDS = 2700.0  # timeout for an operation that another run began
LOG_LINES = 500
EXPIRED_STATUS = 401  # of a token that has expired, or a key that was replaced
BUSY_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0)  # between two attempts after BUSY_STATUS
TOKEN_SCOPE = "https://ml.azure.com/.default"


@dataclass(frozen=True)
class Answer:
    """The answer to one request."""

    body: Any  # the JSON of the answer
    deployment: str  # that answered
    seconds: float


class Target:
    """An endpoint that may not exist yet."""

    def __init__(self, workspace: Workspace, settings: Params) -> None:
        """Derive the endpoint's name from the workspace's id, so that no two collide."""
        self.workspace, self.settings = workspace, settings
        self.client = client = workspace.client
        self.scope = (
            f"/subscriptions/{client.subscription_id}/resourceGroups/{client.resource_group_name}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{client.workspace_name}"
        )
        digest = hashlib.sha256(self.scope.lower().encode()).hexdigest()
        self.name = f"{settings.endpoint}-{digest[:8]}"
        self.id = f"{self.scope}/onlineEndpoints/{self.name}"
        self.batch = f"{settings.endpoint[:17].rstrip('-')}-batch-{digest[:8]}"
        self.access = "enabled" if settings.public_access else "disabled"
        self._headers: dict[str, str] = {}

    def get(self) -> Any:
        """Return the endpoint, or None."""
        try:
            return self.client.online_endpoints.get(self.name)
        except ResourceNotFoundError:
            return None

    def settled(self) -> Any:
        """Return the endpoint, or None, once no operation is under way on it."""
        return self._wait(self.get, f"the endpoint {self.name}")

    def create(self) -> None:
        """Create the endpoint."""
        identity = None
        if self.settings.identity:
            group = self.scope.split("/providers/")[0]
            place = f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities"
            mine = ManagedIdentityConfiguration(resource_id=f"{place}/{self.settings.identity}")
            identity = IdentityConfiguration(type="user_assigned", user_assigned_identities=[mine])
        endpoint = ManagedOnlineEndpoint(
            name=self.name,
            auth_mode=self.settings.auth_mode,
            public_network_access=self.access,
            identity=identity,
            tags=dict(COST),
        )
        with quiet():
            self.client.online_endpoints.begin_create_or_update(endpoint).result()

    def send_logs(self, on: bool = True) -> str:
        """Send the endpoint's logs to Log Analytics, or stop; return why Azure refuses that."""
        return manager.set_logs(self.workspace, self.id, on)

    def differing(self, endpoint: Any) -> dict[str, tuple[str | None, str | None]]:
        """Return the immutable settings that differ, with the endpoint's and the wanted value."""
        if endpoint is None:
            return {}
        mine = (endpoint.identity and endpoint.identity.user_assigned_identities) or []
        has = {
            "auth_mode": endpoint.auth_mode,
            "identity": mine[0].resource_id.split("/")[-1] if mine else None,
        }
        wanted = {name: getattr(self.settings, name) for name in has}
        return {name: (has[name], wanted[name]) for name in has if has[name] != wanted[name]}

    def put(self, traffic: dict[str, int], **tags: str | None) -> None:
        """Set traffic and tags in one call; None removes a tag."""
        endpoint = self.settled()
        wanted = {**endpoint.tags, **tags}
        endpoint.tags = {name: value for name, value in wanted.items() if value is not None}
        endpoint.traffic = traffic
        endpoint.public_network_access = self.access
        with quiet():
            self.client.online_endpoints.begin_create_or_update(endpoint).result()

    def delete(self) -> list[str]:
        """Delete the endpoint, the batch endpoint and everything in them; return what remains.

        First the deployments, which cost money. Then personal data: collected rows, labels, scored
        files. Then the assets that Azure can delete and no other endpoint of the workspace uses.
        The endpoint is last: its tags record what exists, so that a second call can finish after
        an interruption. Code of revisions that were never live is not recorded, so it stays.
        """
        endpoint = self.settled()
        if endpoint is not None:
            self.put({})
            for name in self.deployments():
                self.remove(name)
        made = revisions.assets(endpoint) if endpoint else set()
        if self.batch in (one.name for one in self.client.batch_endpoints.list()):
            made |= assets.of(self.client.batch_deployments.list(self.batch))
            with quiet():
                self.client.batch_endpoints.begin_delete(self.batch).result()
        for folder in (collected.ROWS, collected.LABELS):
            empty(store(self.workspace), folder.format(endpoint=self.name))
        empty(store(self.workspace), SCORED.format(endpoint=self.batch))
        made |= assets.registered(self.client, self.name)
        used = assets.used(self.client, self.name)
        left = assets.remove(self.workspace, self.scope, made - used)
        for code in manager.listed(self.workspace, f"{self.scope}/codes", connection.API):
            if f"codes/{code['name']}/versions/1" not in made | used:
                left.append(f"codes/{code['name']} (of a job, or of a revision never live)")
        if reason := self.send_logs(on=False):
            left.append(f"diagnosticSettings/digits of the endpoint ({reason})")
        if endpoint is not None:
            with quiet():
                self.client.online_endpoints.begin_delete(self.name).result()
        return left

    def require_retention(self) -> int | None:
        """Return after how many days Azure deletes collected rows, None for never.

        Raises DigitsError unless that is `azure.collection_days`. The rule is part of the
        ARM template, which the emulator does not use.
        """
        account = self.client.workspaces.get(self.client.workspace_name).storage_account
        folder = f"{store(self.workspace).container_name}/{collected.ROWS}"
        days = manager.kept_days(self.workspace, account, folder.format(endpoint=self.name))
        wanted = self.settings.collection_days
        if days != wanted and not (days is None and self.workspace.kind == "local"):
            raise DigitsError(
                f"params.yaml: azure.collection_days is {wanted}, but the storage account deletes "
                f"collected rows after {days} days (None: never). To change its rule: digits azure "
                "connect"
            )
        return days

    def commit(self, endpoint: Any) -> str | None:
        """Return the commit that the live model was registered at, if anything is live."""
        spec = revisions.known(endpoint).get(endpoint.tags.get("live", "")) if endpoint else None
        if spec is None:
            return None
        try:
            model = self.client.models.get(MODEL, version=spec.model)
        except ResourceNotFoundError:
            return None
        return str(model.tags.get("commit")) if model.tags else None

    def deployments(self) -> dict[str, str]:
        found = self.client.online_deployments.list(self.name)
        return {one.name: str(one.provisioning_state).split(".")[-1].lower() for one in found}

    def state(self, name: str | None) -> str | None:
        """Return a deployment's state after pending operations; None if it does not exist."""
        state = self._wait(lambda: self.deployments().get(name or ""), f"the deployment {name}")
        return None if state is None else str(state)

    def remove(self, name: str) -> None:
        """Delete a deployment that has no traffic, if it exists."""
        if self.state(name) is not None:
            if reason := manager.remove_scale(self.workspace, f"{self.id}/deployments/{name}"):
                print(f"{name} may leave an autoscale setting in Azure Monitor: {reason}")
            with quiet():
                self.client.online_deployments.begin_delete(name, self.name).result()

    def register(self, release: Release) -> str:
        """Register the model unless its hash is registered already; return its version."""
        known = assets.versions(self.client.models, MODEL)
        for model in known:
            commit = model.tags.get("commit", "")  # live.yml's commit may not be in this history
            if model.tags.get("package") == release.package_hash and git.commit(commit):
                return str(model.version)
        version = str(1 + max((int(model.version) for model in known), default=0))
        tags = release.tags | {OWNER: self.name}
        model = Model(
            name=MODEL, version=version, path=release.package, type="custom_model", tags=tags
        )
        with quiet():
            return str(self.client.models.create_or_update(model).version)

    def deploy(self, release: Release, order: int) -> DeploymentSpec:
        """Create the release's deployment, without traffic; return its spec."""
        settings, scale = self.settings, self.settings.autoscale
        spec = DeploymentSpec(
            model=self.register(release),
            code="",
            environment=release.environment_hash,
            type=settings.instance_type,
            count=settings.instance_count,
            timeout=settings.request_timeout_seconds,
            at_a_time=settings.requests_at_a_time,
            collect=settings.collections,
            order=order,
            scale=(scale.most, *scale.cpu_percent, scale.minutes) if scale else None,
        )
        environment = Environment(
            name=ENVIRONMENT,
            version=release.environment_hash,
            image=settings.image,
            conda_file=release.conda,
            tags={OWNER: self.name},
        )
        with tempfile.TemporaryDirectory() as folder:
            code = str(stage_code(release, Path(folder)))
            self._create(release.name, spec, code, environment)
        return self.spec_of(release.name, spec)

    def spec_of(self, name: str, spec: DeploymentSpec) -> DeploymentSpec:
        """Return a spec completed with the code of a deployment."""
        made = self.client.online_deployments.get(name, self.name)
        parts = str(made.code_configuration.code).split("/")
        model = str(made.model).split("/")[-1]
        return dataclasses.replace(spec, code=f"{parts[-3]}:{parts[-1]}", model=model)

    def redeploy(self, name: str, spec: DeploymentSpec) -> None:
        """Create a deployment again from its spec, without traffic."""
        code, _, version = spec.code.partition(":")
        place = f"{self.scope}/codes/{code}/versions/{version}"
        environment = f"{self.scope}/environments/{ENVIRONMENT}/versions/{spec.environment}"
        self._create(name, spec, place, environment)

    def _create(self, name: str, spec: DeploymentSpec, code: str, environment: Any) -> None:
        self.state(name)
        collector = None
        if spec.collect:
            collections = {name: DeploymentCollection(enabled="true") for name in spec.collect}
            collector = DataCollector(collections=collections)
        deployment = ManagedOnlineDeployment(
            name=name,
            endpoint_name=self.name,
            model=f"{self.scope}/models/{MODEL}/versions/{spec.model}",
            code_configuration=CodeConfiguration(code=code, scoring_script="score.py"),
            environment=environment,
            instance_type=spec.type,
            instance_count=spec.count,
            data_collector=collector,
            tags=dict(COST),
            environment_variables={
                "WORKER_COUNT": str(spec.at_a_time),
                # Otherwise the inference server sends every answer there (its server/config.py).
                "APP_INSIGHTS_LOG_RESPONSE_ENABLED": "false",
            },
            app_insights_enabled=True,
            request_settings=OnlineRequestSettings(
                request_timeout_ms=int(spec.timeout * 1000),
                max_concurrent_requests_per_instance=spec.at_a_time,
            ),
        )
        with quiet():
            self.client.online_deployments.begin_create_or_update(
                deployment, skip_script_validation=True
            ).result()
        if spec.scale:
            target, location = f"{self.id}/deployments/{name}", self.get().location
            manager.set_scale(self.workspace, target, location, spec.count, spec.scale)

    def logs(self, name: str) -> str:
        return str(self.client.online_deployments.get_logs(name, self.name, lines=LOG_LINES))

    def _wait(self, state: Any, what: str) -> Any:
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            found = state()
            shown = getattr(found, "provisioning_state", found)
            if str(shown).split(".")[-1].lower() not in BUSY:
                return found
            if time.monotonic() > deadline:
                raise DigitsError(f"{what} is still {shown}. Look at it in the Azure portal.")
            time.sleep(self.workspace.poll_seconds)

    def ask(self, content: Any, deployment: str | None = None) -> Answer:
        """Send one request's JSON to a deployment, by default chosen by traffic; return the answer.

        Raises DigitsError when it is rejected or times out.
        """
        endpoint = self._headers or self.authorise()
        chosen = {"azureml-model-deployment": deployment} if deployment else {}
        body = json.dumps(content).encode()
        local = self.workspace.kind == "local"  # reached without a proxy
        opener = urllib.request.build_opener(*[urllib.request.ProxyHandler({})] * local)
        try:
            for wait in (*BUSY_SECONDS, None):
                headers = {name: value for name, value in endpoint.items() if name != "url"}
                request = urllib.request.Request(endpoint["url"], body, headers | chosen)
                start = time.monotonic()
                try:
                    answer = opener.open(request, timeout=self.settings.request_timeout_seconds + 5)
                    break
                except urllib.error.HTTPError as error:
                    if wait is None or error.code not in (BUSY_STATUS, EXPIRED_STATUS):
                        raise
                    if error.code == EXPIRED_STATUS:  # creating a deployment may take longer
                        before, endpoint = endpoint, self.authorise()
                        if endpoint == before:
                            raise
                    else:
                        time.sleep(wait)
            with answer:
                served = answer.headers.get("azureml-model-deployment") or deployment or ""
                return Answer(json.load(answer), served, time.monotonic() - start)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:300]
            own = error.headers.get(MODEL_STATUS)
            status = f"{error.code} ({own} of score.py)" if own else error.code
            raise DigitsError(f"the endpoint answered {status}: {text}") from None
        except (OSError, ValueError) as error:
            raise DigitsError(f"the endpoint gave no answer: {error!r}") from None

    def concurrency(self) -> int:
        """Return how many concurrent requests each deployment with traffic accepts."""
        traffic = self.get().traffic
        takes = [
            one.request_settings.max_concurrent_requests_per_instance * one.instance_count
            for one in self.client.online_deployments.list(self.name)
            if traffic.get(one.name)
        ]
        return IN_FLIGHT * min(takes, default=1)

    def authorise(self) -> dict[str, str]:
        """Return the headers of a request, key or token included, and the address as `url`."""
        if self.settings.auth_mode == "aad_token":
            secret = self.workspace.credential.get_token(TOKEN_SCOPE).token
        else:
            keys = self.client.online_endpoints.get_keys(self.name)
            secret = getattr(keys, "primary_key", None) or getattr(keys, "access_token", "")
        bearer = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        self._headers = bearer | {"url": str(self.get().scoring_uri)}
        return self._headers
