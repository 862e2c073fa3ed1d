"""`digits deploy COMMAND`: deploy the model and code of this commit, and roll them back.

A revision is a deployment whose name is derived from the bytes of model and code and from its
settings. The endpoint's tags record what is live and change together with its traffic, so an
interrupted run leaves nothing that the next one could mistake for complete.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError

from core import console
from core.errors import DigitsError
from core.files import write_text
from mlops import options
from mlops.azure import revisions
from mlops.azure.endpoint import Target
from mlops.azure.errors import LOGS, RAISED, explain_error
from mlops.azure.revisions import DeploymentSpec, Release
from mlops.azure.settings import Params, load
from mlops.azure.workspace import connect
from mlops.deploy import lease, plan, release, smoke
from mlops.deploy.smoke import Item


class Deployer:
    """The commands on one endpoint."""

    def __init__(self, target: Target, settings: Params, wait: bool) -> None:
        """Use an endpoint; with `wait`, wait for another deployment instead of failing."""
        self.target, self.settings, self.wait = target, settings, wait
        self.held: Callable[[], bool] = lambda: True  # until `alone` sets it

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        place = (self.target.workspace, self.target.name, self.settings.lease_seconds, self.wait)
        with lease.held(*place) as self.held:
            yield

    def require_lease(self) -> None:
        if not self.held():
            raise DigitsError(
                f"lost the deployment lease on {self.target.name}: another deployment may be "
                "running. See `digits deploy status`, then retry."
            )

    def items(self) -> list[Item]:
        """Return the requests of the smoke test, from this commit's model folder."""
        return smoke.read(release.SMOKE, self.settings.smoke.digits)

    def check(self, deployment: str, items: list[Item], version: str | None) -> list[Any]:
        """Run the smoke test on a deployment; return its answers' values."""
        return smoke.check(self.target, deployment, items, self.settings.smoke, version)

    def apply(self, new: Release) -> None:
        """Make a release live."""
        with self.alone():
            endpoint = self.target.settled()
            release.refuse_bad_metrics(self.target.commit(endpoint))
            self.target.require_retention()
            for name, (has, wanted) in self.target.differing(endpoint).items():
                raise DigitsError(
                    f"azure.{name} is {wanted}, but {self.target.name} was created with {has}, "
                    "which its clients rely on; restore it, or run `digits deploy destroy` first"
                )
            if endpoint is None:
                self.target.create()
                endpoint = self.target.settled()
            elif str(endpoint.provisioning_state).lower().endswith("failed"):
                self.target.put(dict(endpoint.traffic))  # the same traffic again
                endpoint = self.target.settled()
            if reason := self.target.send_logs():
                print(f"The endpoint's logs do not go to Log Analytics: {reason}", flush=True)
            live, _ = self.reconcile_traffic(endpoint)
            if endpoint.public_network_access.lower() != self.target.access:
                print(f"Public access is now {self.target.access}.", flush=True)
                self.target.put(dict(self.target.settled().traffic))
            states = self.target.deployments()
            if live == new.name and "paused" not in endpoint.tags:
                try:
                    self.check(live, self.items(), new.model_version)
                except DigitsError as error:
                    if states[live] == "succeeded":
                        raise
                    print(f"Redeploying {live}: its state is {states[live]} ({error}).", flush=True)
                    live = self.fall_back(live, endpoint.tags.get("previous"), states)
                else:
                    print(f"{live} is live already: nothing to change.")
                    return
            for name in states:
                if name not in (live, new.name) or (
                    name == new.name and states[name] != "succeeded"
                ):
                    self.target.remove(name)
            order = 1 + max((one.order for one in revisions.known(endpoint).values()), default=0)

            def create() -> DeploymentSpec:
                if states.get(new.name) == "succeeded":
                    return revisions.known(endpoint).get(new.name) or self.target.deploy(new, order)
                return self.target.deploy(new, order)

            self.switch(new.name, live, create, new.model_version)

    def fall_back(self, live: str, previous: str | None, states: dict[str, str]) -> str | None:
        """Let the previous revision serve, if it can, while the live one is redeployed."""
        if previous and states.get(previous) == "succeeded":
            with contextlib.suppress(DigitsError):
                self.check(previous, self.items(), None)
                print(f"{previous} serves meanwhile.", flush=True)
                self.target.put({previous: 100}, live=previous, previous=None)
                return previous
        self.target.put({})
        return None

    def reconcile_traffic(self, endpoint: Any) -> tuple[str | None, str | None]:
        """Restore the traffic in the tags after an interrupted run; return live, previous."""
        tags = endpoint.tags
        traffic = {name: share for name, share in endpoint.traffic.items() if share}
        self.target.state(tags.get("live"))  # it may be scaling now
        live = revisions.serving(endpoint, self.target.deployments())
        wanted = {live: 100} if live and "paused" not in tags else {}
        if traffic != wanted:
            print("An earlier run was interrupted; its traffic is restored first.", flush=True)
            self.target.put(wanted)
        return live, tags.get("previous")

    def switch(
        self, new: str, live: str | None, create: Callable[[], DeploymentSpec], version: str | None
    ) -> None:
        """Create a deployment, test it, shift the traffic to it; revert on any failure."""
        items = self.items()
        in_place = self.settings.strategy == "in_place" and live not in (None, new)
        endpoint = self.target.settled()
        tags: dict[str, str | None] = {
            name: endpoint.tags.get(name) for name in ("live", "previous", "paused")
        }
        # The live revision if a killed in_place apply has deleted it; restored after a failure.
        fallen = tags["live"] if live is None and tags["paused"] is None else None
        fallen = None if fallen == new else fallen
        old = revisions.known(endpoint).get(live or fallen or "")
        self.target.authorise()  # now: a short-lived login may expire during the creation
        if in_place and old is None:
            raise DigitsError(f"{live} has no record to restore it from; use strategy blue_green")
        lost = old if fallen else None
        try:
            if in_place and live:
                print(f"No service until {new} is healthy (strategy in_place).", flush=True)
                self.target.put({})
                lost = old
                self.target.remove(live)
            spec = create()
            self.require_lease()
            known = self.check(new, items, version)
            print(f"{new} is healthy and passed the smoke test.", flush=True)
            if live and live != new and not in_place:
                for percent in self.settings.traffic_percent[:-1]:
                    self.require_lease()
                    self.target.put({new: percent, live: 100 - percent})
                    self.watch(new, percent, version, items, known)
            self.require_lease()
            endpoint = self.target.settled()
            kept = tags["live"] if tags["live"] != new else tags["previous"]
            kept = kept if kept != new else None
            made = revisions.tags(endpoint, new, spec)
            self.target.put({new: 100}, live=new, previous=kept, paused=None, **made)
            self.watch(new, 100, version, items, known)
        except BaseException as error:
            notes = self.undo(new, live or fallen, tags, lost)
            raise DigitsError(explain_error(error) + notes) from error
        print(f"{new} is live with all traffic at {endpoint.scoring_uri}")

    def watch(
        self, new: str, percent: int, version: str | None, items: list[Item], known: list[Any]
    ) -> None:
        """Send requests as clients do, for the duration of a step, at least once.

        The answers must equal those to requests by name: accuracy would need more requests.
        """
        print(f"{percent} % of the traffic goes to {new}.", flush=True)
        deadline = time.monotonic() + self.settings.step_seconds
        for item, before in zip(items, known, strict=True):
            answer = self.target.ask(item.request)
            if answer.deployment == new:
                smoke.require_version(answer, version)
                value = item.value_in(answer)
                if value != before:
                    raise DigitsError(
                        f"{new} answered {value!r} to a request that it answered {before!r} before"
                    )
        number = 0
        while time.monotonic() < deadline:
            self.target.ask(items[number % len(items)].request)
            number += 1
            time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))

    def undo(
        self, new: str, live: str | None, tags: dict[str, str | None], lost: DeploymentSpec | None
    ) -> str:
        """Restore the traffic, save the new deployment's logs, delete it; return what was done."""
        if not self.held():
            return "; not reverted: that is left to the run with the lease, or the next apply"
        notes = []

        def attempt(what: str, action: Callable[[], object]) -> None:
            try:
                action()
                notes.append(what)
            except Exception as error:
                notes.append(f"FAILED: {what} ({explain_error(error)}); the next apply repairs it")

        def discard() -> None:
            file = LOGS / f"{new}.log"
            with contextlib.suppress(Exception):  # there may be none
                log = self.target.logs(new)
                write_text(file, log + "\n")
                notes.extend(line[:300] for line in RAISED.findall(log)[-1:])
                notes.append(f"its logs are in {file}")
            if new not in (live, tags.get("previous")):
                attempt(f"{new} was removed", lambda: self.target.remove(new))

        gone = lost is not None
        with contextlib.suppress(Exception):  # if unknown, it counts as lost
            gone = gone and self.target.deployments().get(live or "") != "succeeded"
        up = live is not None and tags.get("paused") is None
        if gone and lost and live:
            attempt("no deployment has traffic", lambda: self.target.put({}))
            discard()  # first: a small quota cannot hold both
            attempt(f"{live} was deployed again", lambda: self.target.redeploy(live, lost))
            with contextlib.suppress(Exception):
                up = up and self.target.state(live) == "succeeded"
        wanted = {live: 100} if live and up else {}
        attempt(
            f"traffic was returned to {live}" if wanted else "no deployment has traffic",
            lambda: self.target.put(wanted, **tags),
        )
        if not gone:
            discard()
        return "; ".join(["", *notes])

    def rollback(self, revision: str | None) -> None:
        """Give the traffic back to the previous revision, or to a named one."""
        before = (self.target.get() or self.existing()).tags.get("live")
        with self.alone():
            endpoint = self.existing()
            now = endpoint.tags.get("live")
            if revision is None and now != before:
                raise DigitsError(
                    f"while this waited for another deployment, {now} replaced {before}; "
                    "name the revision to return to; `digits deploy status` lists them"
                )
            live, previous = self.reconcile_traffic(endpoint)
            name = revision or previous
            specs = revisions.known(endpoint)
            if name is None:
                raise DigitsError("There is no previous revision. List them: digits deploy status")
            if name not in specs:
                raise DigitsError(f"{name}: no such revision; there are {', '.join(specs)}")
            if name == live:
                raise DigitsError(f"{name} is live already")
            self.back_to(name, live, specs[name])

    def back_to(self, name: str, live: str | None, spec: DeploymentSpec) -> None:
        """Switch to a formerly live revision; redeploy it if needed."""
        states = self.target.deployments()

        def create() -> DeploymentSpec:
            if states.get(name) != "succeeded":
                for other in states:  # the quota may not allow a third
                    if other != live:
                        self.target.remove(other)
                self.target.redeploy(name, spec)
            return spec

        if states.get(name) == "succeeded":  # it has served before: all traffic at once
            at_once: dict[str, Any] = {"traffic_percent": (100,), "step_seconds": 0.0}
            self.settings = replace(self.settings, strategy="blue_green", **at_once)
        self.switch(name, live, create, None)

    def pause(self) -> None:
        """Delete the deployments, which cost money; keep the endpoint and its records."""
        with self.alone():
            endpoint = self.existing()
            live = endpoint.tags.get("live")
            if live is None:
                raise DigitsError("no revision is live, so there is nothing to pause")
            self.target.put({}, paused="yes")
            for name in self.target.deployments():
                self.target.remove(name)
            print(f"Paused: the deployments are deleted; `digits deploy resume` restores {live}.")

    def resume(self) -> None:
        """Deploy again the revision that was live before the pause."""
        with self.alone():
            endpoint = self.existing()
            if "paused" not in endpoint.tags:
                raise DigitsError("the endpoint is not paused; see `digits deploy status`")
            name = endpoint.tags["live"]
            self.back_to(name, None, revisions.known(endpoint)[name])

    def logs(self, revision: str | None) -> None:
        """Print the last lines that a deployment logged, the live one's if none is named."""
        endpoint = self.existing()
        name, known = revision or endpoint.tags.get("live"), self.target.deployments()
        if name not in known:
            raise DigitsError(f"{name} is not deployed. Deployed: {', '.join(known) or 'nothing'}")
        print(self.target.logs(name))

    def destroy(self, yes: bool) -> None:
        """Delete the endpoint, its deployments, its collected data and its records."""
        name = self.target.name
        if not yes:
            print("Its deployments, collected data, labels and batch results are deleted too.")
            options.confirm("the endpoint", name)
        with self.alone():
            left = self.target.delete()
        lease.forget(self.target.workspace, name)
        print(f"Deleted {name}, its deployments and collected data.")
        if left:
            print("Left in the workspace, for the reason given:", *left, sep="\n  ")

    def existing(self) -> Any:
        """Return the endpoint; raise DigitsError when there is none."""
        endpoint = self.target.settled()
        if endpoint is None:
            raise DigitsError(
                f"there is no endpoint {self.target.name}; run `digits deploy apply --workspace "
                f"{self.target.workspace.kind}` first"
            )
        return endpoint

    def status(self, as_json: bool) -> None:
        """Print the endpoint and its revisions."""
        endpoint = self.target.get()
        if endpoint is None:
            if as_json:
                options.show({"endpoint": self.target.name, "url": None})
            else:
                print(f"endpoint {self.target.name}: absent")
            return
        states, specs = self.target.deployments(), revisions.known(endpoint)
        rows = [
            {
                "name": name,
                "traffic_percent": endpoint.traffic.get(name, 0),
                "state": states.get(name, "not deployed"),
                "model": specs[name].model if name in specs else None,
                "marks": [mark for mark in ("live", "previous") if endpoint.tags.get(mark) == name],
            }
            for name in dict.fromkeys([*specs, *states])
        ]
        paused = "paused" in endpoint.tags
        if as_json:
            place = {"endpoint": self.target.name, "url": endpoint.scoring_uri, "paused": paused}
            options.show(place | {"commit": self.target.commit(endpoint), "revisions": rows})
            return
        print(f"endpoint {self.target.name}: {endpoint.scoring_uri}{', paused' if paused else ''}")
        for row in rows:
            made = f"model {row['model']}" if row["model"] else "not yet live"
            share = f"{row['name']}  {row['traffic_percent']:3} %  {row['state']:12}"
            print(f"  {share}  {made}  {' '.join(row['marks'])}".rstrip())

    def plan(self, new: Release) -> None:
        """Print what `apply` would change; raise DigitsError if it would refuse that."""
        lines = list(plan.lines(self.target, new))
        print("\n".join(lines))
        if any(plan.REFUSED in line for line in lines):
            raise DigitsError("`digits deploy apply` will refuse this, for the reason shown above")


def main(command: str, workspace: str, wait: bool = False, **given: Any) -> None:
    """Call a method of Deployer on the endpoint of a workspace."""
    settings = load()
    if command in ("plan", "apply"):
        given["new"] = release.read(settings)
    console.interrupt_on_signals()
    try:
        getattr(Deployer(Target(connect(workspace), settings), settings, wait), command)(**given)
    except (HttpResponseError, ServiceRequestError, ServiceResponseError) as error:
        raise DigitsError(explain_error(error)) from error
