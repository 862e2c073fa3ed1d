"""An emulator with test controls: faults, recorded calls, machines that are lost.

    python tests/support/controls.py --folder DIR    # and the options of azureml_emulator

The controls have a port of their own, `controls_port` in address.json; a caller needs the same
token as for the management API. The services know nothing of them: they act as middleware before
the routes and around the work of operations.

    PUT  /faults              a list of `Fault`s, instead of those before; forgets the calls
    GET  /calls               {"calls": all since then, "faults": what is left of them}
    POST /jobs/NAME/lose      take the machine of a running job away
"""

import asyncio
import contextlib
import copy
import json
import re
import sys
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from azureml_emulator.__main__ import main
from azureml_emulator.server import Emulator
from azureml_emulator.services import jobs, urls
from azureml_emulator.services.online_endpoints import OUT_OF_QUOTA
from azureml_emulator.state import Json, RefusedError, State, Work

RECORDED = 20_000  # calls
FAILURES: dict[str, tuple[Any, ...]] = {  # what a deployment's operation may end with
    "quota": OUT_OF_QUOTA,
    "image": ("ImageBuildFailure", "The image build failed: see the build log."),
    "unhealthy": ("ResourceNotReady", "User container has crashed or terminated."),
}


@dataclass
class Fault:
    """Something that goes wrong: on the calls that match, or in a deployment's creation.

    - fail: the call is refused with `status` and `code`, and nothing is done
    - lose: the call is done, then the connection is closed without an answer
    - hang: no answer for `seconds`, then as fail
    - quota, image, unhealthy: what a deployment's operation ends with
    """

    do: str
    method: str = ""
    path: str = ""  # a regular expression, found in the call's path
    skip: int = 0  # calls that match before the first that goes wrong
    times: int = 1_000_000
    status: int = 400
    code: str = "InjectedFault"
    seconds: float = 0


def lose(state: State, name: str) -> None:
    """Take a running job's machine away, as Azure may with low priority."""
    for key in state.resources:
        if key.endswith(f"/jobs/{name}"):
            state.lost.add(key)
            jobs.end(state, key)


class Controls:
    """The faults that are switched on, and the calls since they were."""

    def __init__(self, state: State) -> None:
        """Act on what `state` does from now on."""
        self.state = state
        self.faults: list[Fault] = []
        self.calls: deque[Json] = deque(maxlen=RECORDED)
        state.perform = self.perform

    def perform(self, path: str, work: Work) -> None:
        """Let the creation of an online deployment fail if that is switched on."""
        if "/onlineendpoints/" in path and "/deployments/" in path:
            deleting = self.state.resources[path]["properties"]["provisioningState"] == "Deleting"
            for fault in self.faults:
                if fault.do in FAILURES and not deleting:
                    raise RefusedError(400, *FAILURES[fault.do])
        work(path)

    def strike(self, method: str, path: str) -> Fault | None:
        """Return the fault that is switched on for this call, and count it."""
        for fault in self.faults:
            if fault.do in FAILURES or fault.method not in ("", method):
                continue
            if re.search(fault.path, path, re.I):
                fault.skip -= 1
                if fault.skip < 0 and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    @web.middleware
    async def middleware(self, request: web.Request, handler: urls.Handler) -> web.StreamResponse:
        """Record one call of the management API; let it fail if that is switched on."""
        body, path = await urls.read_json(request), request.raw_path.partition("?")[0]
        fault = self.strike(request.method, path)
        query = {name: request.query.getall(name) for name in request.query}
        record: Json = {"method": request.method, "path": path, "query": query}
        record["request"] = copy.deepcopy(body) if await request.read() else None
        self.calls.append(record)
        if fault and fault.do in ("fail", "hang"):
            await asyncio.sleep(fault.seconds)
            raise RefusedError(fault.status, fault.code, f"Refused for a test: {path}")
        try:
            response = await handler(request)
        except RefusedError as error:
            response = urls.answer(error.status, error.body)
        assert isinstance(response, web.Response)
        content = json.loads(response.text) if response.text else None
        record |= {"status": response.status, "response": content}
        if fault and fault.do == "lose" and request.transport:
            request.transport.close()
        return response

    def application(self) -> web.Application:
        """Return what serves the controls."""

        async def set_faults(request: web.Request) -> web.Response:
            self.faults[:] = [Fault(**fault) for fault in await urls.read_json(request)]
            self.calls.clear()
            return urls.answer(200, {})

        async def get_calls(request: web.Request) -> web.Response:
            faults = [asdict(fault) for fault in self.faults]
            return urls.answer(200, {"calls": list(self.calls), "faults": faults})

        async def lose_machine(request: web.Request) -> web.Response:
            await asyncio.to_thread(lose, self.state, request.match_info["name"])
            return urls.answer(200, {})

        made = web.Application(
            client_max_size=urls.BODY_BYTES, middlewares=[urls.authenticate(self.state)]
        )
        made.router.add_put("/faults", set_faults)
        made.router.add_get("/calls", get_calls)
        made.router.add_post("/jobs/{name}/lose", lose_machine)
        return made


class ControlledEmulator(Emulator):
    """An emulator with test controls."""

    def application(self) -> web.Application:
        self.controls = Controls(self.state)
        return urls.application(self.state, [self.controls.middleware])

    def start(self, stack: contextlib.ExitStack) -> None:
        super().start(stack)
        server = self.servers.serve(
            self.controls.application(), self.address.get("controls_port", 0)
        )
        stack.callback(server.stop)
        self.publish(controls_port=server.port)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], ControlledEmulator))
