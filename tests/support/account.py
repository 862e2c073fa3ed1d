"""A person's account on the GitHub on loopback: repositories are made there, and runs run at once.

A repository that is made there is octo/digits; its workflows are run by act in a thread. The
person's token is a classic one. Rules beyond those of loopback.py, each from the page of
docs.github.com that is named where it is applied.
"""

import base64
import json
import re
import threading
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self

from loopback import ACTIONS_ID, GitHub
from records import FULL_NAME, NAME, OWNER, Call, Pull, Run

TOKEN = "the-token-of-a-person"
SCOPES = ("delete_repo", "repo", "workflow")
UPGRADE = "Upgrade to GitHub Pro or make this repository public to enable this feature."
NOT_FOUND = 404, {"message": "Not Found"}
Answer = tuple[int, Any]


class Account(GitHub):
    """The account of `octo`, who has no repository yet, on the plan Pro or Free."""

    def __init__(self, folder: Path, plan: str = "pro", scopes: tuple[str, ...] = SCOPES) -> None:
        """Make the account."""
        super().__init__(folder)
        self.plan, self.scopes, self.private = plan, scopes, True
        self.repository: dict[str, Any] | None = None
        self.deleted: list[str] = []  # descriptions
        self.disabled = set[str]()
        self.rulesets: dict[int, dict[str, Any]] = {}
        self.refusals: dict[tuple[str, str], Answer] = {}  # by method and path, for tests
        self.times: dict[int, int] = {}  # seconds that the jobs of a run took
        self.computed: dict[int, tuple[str, str]] = {}  # what a pull request's merge was tried with
        self.lock, self.changed = threading.RLock(), threading.Condition()
        self.stopped, self.broken = False, ""
        self.kinder = True  # than some saw it: see `press`

    def __enter__(self) -> Self:
        """Listen, and run what is started."""
        super().__enter__()
        self.worker = threading.Thread(target=self.work)
        self.worker.start()
        return self

    def __exit__(self, *reason: object) -> None:
        """Stop what runs, and listening."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        self.stop()
        self.worker.join()
        super().__exit__(*reason)

    def work(self) -> None:
        """Run what is started until this is stopped."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.stopped)
                if self.stopped:
                    return
            try:
                self.settle()
            except Exception as error:  # a later answer tells
                self.broken = self.broken or repr(error)
                return

    def stop(self) -> None:
        """Start nothing more, and end the run that is at work."""
        self.waiting.clear()
        for run in self.runs:
            if run.status == "in_progress":
                self.cancel(run)

    def checks(self, pull: Pull, sender: str) -> list[tuple[str, str, str, dict[str, Any]]]:
        """Return the runs that an update starts: none of a workflow that is off."""
        rows = super().checks(pull, sender)
        return [row for row in rows if row[1] not in self.disabled and not self.skips(row[2])]

    def skips(self, sha: str) -> bool:
        """Say whether a commit's message starts no run: "Skipping workflow runs"."""
        return "[skip ci]" in self.git("log", "-1", "--format=%B", sha)

    def on_main(self) -> None:
        """Start what a push to main starts."""
        sha = self.head("main")
        for file in ("ci.yml", "deploy.yml"):
            if file not in self.disabled and not self.skips(sha):
                self.waiting.append(("push", file, sha, {"ref": "refs/heads/main"}))

    # The API

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a job, or a person, one at a time."""
        with self.lock:
            if TOKEN in request.headers.get("Authorization", ""):
                self.answer_person(request)
            elif self.repository is None:
                self.send(request, 404, b"{}")
            else:
                super().answer(request)
        with self.changed:
            self.changed.notify_all()

    def answer_person(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a person by what the token's scopes allow."""
        size = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(size)) if size else None
        url = urllib.parse.urlsplit(request.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        method, path = request.command, url.path.removeprefix(f"/repos/{FULL_NAME}")
        if self.broken:
            status, content = 500, {"message": self.broken}
        elif (method, path) in self.refusals:
            status, content = self.refusals[method, path]
        else:
            status, content = self.personal(method, path, query, body)
        self.calls.append(Call("", "", method, path, status))
        # "Scopes for OAuth apps": the header names those of a classic token.
        headers = {"X-OAuth-Scopes": ", ".join(self.scopes)}
        text = b"" if content is None else json.dumps(content).encode()
        self.send(request, status, text, headers)

    def personal(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        """Return status and content of a person's call."""
        if (method, path) == ("GET", "/user"):
            return 200, {"login": OWNER, "id": 583231, "email": "octo@example.org"}
        if "repo" not in self.scopes:
            return NOT_FOUND
        if (method, path) == ("POST", "/user/repos"):
            return self.make(body)
        if self.repository is None or path.startswith("/repos/"):
            return NOT_FOUND
        routes: list[tuple[str, str, Callable[..., Answer]]] = [
            ("GET", "", lambda: (200, self.repository)),
            ("DELETE", "", self.remove),
            ("PATCH", "", lambda: self.rename_default(body)),
            ("GET", "/git/ref/heads/(.+)", self.show_ref),
            ("GET", "/git/commits/(.+)", self.show_commit),
            ("POST", "/git/blobs", lambda: self.blob(body)),
            ("POST", "/git/(trees|commits)", lambda kind: self.store(kind, body)),
            ("POST|PATCH", "/git/refs(?:/(heads/.+))?", lambda name: self.set_ref(name, body)),
            ("GET", "/contents/(.+)", lambda name: self.show_file(name, query["ref"])),
            ("PUT", "/contents/(.+)", lambda name: self.write_file(name, body)),
            ("GET", "/actions/workflows", self.workflows),
            ("PUT", "/actions/workflows/(.+)/disable", self.disable),
            ("POST", "/actions/workflows/(.+)/dispatches", lambda name: self.start(name, body)),
            ("GET", "/actions/workflows/(.+)/runs", lambda name: self.list_runs(name, query)),
            ("GET", r"/actions/runs/(\d+)/jobs", self.jobs),
            ("POST", r"/actions/runs/(\d+)/(\S+)", self.press),
            ("POST", "/actions/variables", lambda: self.variable(body)),
            ("GET|POST", "/rulesets", lambda: self.rules(body)),
            ("DELETE", r"/rulesets/(\d+)", lambda number: self.unrule(int(number))),
            ("POST", "/pulls", lambda: self.open_pull(body)),
            ("GET", r"/pulls/(\d+)", lambda number: (200, self.show(int(number)))),
            ("PUT", r"/pulls/(\d+)/merge", lambda number: self.merge(int(number), body)),
            ("PUT", r"/pulls/(\d+)/update-branch", lambda number: self.update(int(number), body)),
            ("GET", "/commits/(.+)/check-runs", self.check_runs),
        ]
        for methods, pattern, work in routes:
            found = re.fullmatch(pattern, path)
            if found and method in methods.split("|"):
                return work(*found.groups())
        return self.serve(method, path, query, body)

    # Repositories

    def make(self, body: Any) -> Answer:
        """Make the repository: repos/repos, "Create a repository for the authenticated user"."""
        if self.repository is not None:
            errors = [{"message": "name already exists on this account"}]
            return 422, {"message": "Repository creation failed.", "errors": errors}
        assert body["name"] == NAME and body["private"] and body["auto_init"]
        self.repository = {"description": body["description"], "private": True}
        self.repository |= {"full_name": FULL_NAME, "temp_clone_token": "secret"}
        self.repository["default_branch"] = "master"  # as the account's settings say
        sha = self.git("hash-object", "-w", "--stdin", data=b"# digits\n")
        tree = self.git("mktree", data=f"100644 blob {sha}\tREADME.md\n".encode())
        self.git("update-ref", "refs/heads/master", self.git("commit-tree", tree, "-m", "Initial"))
        return 201, self.repository

    def remove(self) -> Answer:
        """Delete the repository: repos/repos, "Delete a repository"."""
        if "delete_repo" not in self.scopes:
            return 403, {"message": "Must have admin rights to Repository."}
        assert self.repository
        self.deleted.append(self.repository["description"])
        self.repository = None
        self.stop()
        return 204, None

    def rename_default(self, body: Any) -> Answer:
        """Name another default branch."""
        assert self.repository
        self.repository |= body
        return 200, self.repository

    # Git

    def show_ref(self, name: str) -> Answer:
        """Return where a branch is."""
        sha = self.git("for-each-ref", "--format=%(objectname)", f"refs/heads/{name}")
        return (200, {"object": {"sha": sha}}) if sha else NOT_FOUND

    def show_commit(self, sha: str) -> Answer:
        """Return a commit's parents."""
        parents = self.git("log", "-1", "--format=%P", sha).split()
        return 200, {"sha": sha, "parents": [{"sha": parent} for parent in parents]}

    def blob(self, body: Any) -> Answer:
        """Store a blob."""
        data = base64.b64decode(body["content"])
        return 201, {"sha": self.git("hash-object", "-w", "--stdin", data=data)}

    def set_ref(self, name: str | None, body: Any) -> Answer:
        """Make a branch or move one forward; workflow files need a scope of their own.

        "Scopes for OAuth apps", workflow.
        """
        ref = f"refs/{name}" if name else body["ref"]
        there = bool(self.git("for-each-ref", ref))
        if there != bool(name):
            text = "Reference does not exist" if name else "Reference already exists"
            return 422, {"message": text}
        if "workflow" not in self.scopes and self.workflow_refusal("master", body["sha"]):
            text = "refusing to allow a Personal Access Token to create or update workflow"
            return 403, {"message": f"{text} without `workflow` scope"}
        self.git("update-ref", ref, body["sha"])
        return (200 if name else 201), {"ref": ref}

    def show_file(self, name: str, ref: str) -> Answer:
        """Return a file, in base64."""
        data = self.git("show", f"{ref}:{name}") + "\n"
        sha = self.git("rev-parse", f"{ref}:{name}")
        return 200, {"content": base64.encodebytes(data.encode()).decode(), "sha": sha}

    def write_file(self, name: str, body: Any) -> Answer:
        """Commit a file to a branch: repos/contents, "Create or update file contents"."""
        branch = body["branch"]
        if self.git("rev-parse", f"{branch}:{name}") != body.get("sha"):
            return 409, {"message": f"{name} does not match {body.get('sha')}"}
        text = base64.b64decode(body["content"]).decode()
        entry = {"path": name, "mode": "100644", "content": text}
        tree = {"base_tree": self.git("rev-parse", f"{branch}^{{tree}}"), "tree": [entry]}
        commit = {"tree": self.store("trees", tree)[1]["sha"], "parents": [self.head(branch)]}
        made = self.store("commits", commit | {"message": body["message"]})[1]["sha"]
        self.git("update-ref", f"refs/heads/{branch}", made)
        for pull in self.pulls.values():
            if (pull.state, pull.branch) == ("open", branch):
                self.waiting.extend(self.checks(pull, "User"))
        return 200, {"commit": {"sha": made}}

    # Actions

    def workflows(self) -> Answer:
        """Return the workflows of the default branch."""
        names = self.git("ls-tree", "--name-only", "main", ".github/workflows/").splitlines()
        rows = [{"path": name, "state": "active"} for name in names]
        return 200, {"total_count": len(rows), "workflows": rows}

    def disable(self, name: str) -> Answer:
        """Switch a workflow off."""
        if not any(row["path"].endswith(f"/{name}") for row in self.workflows()[1]["workflows"]):
            return NOT_FOUND
        self.disabled.add(name)
        return 204, None

    def start(self, name: str, body: Any) -> Answer:
        """Start a workflow by hand: actions/workflows, "Create a workflow dispatch event"."""
        if name in self.disabled:
            return 422, {"message": "Cannot trigger a 'workflow_dispatch' on a disabled workflow"}
        self.dispatch(name, body["ref"], body.get("inputs", {}))
        return 204, None

    def list_runs(self, name: str, query: dict[str, str]) -> Answer:
        """Return a workflow's runs, the newest first."""
        rows = [
            run.facts()
            for run in reversed(self.runs)
            if run.workflow == name
            and query.get("head_sha", run.sha) == run.sha
            and query.get("event", run.event) == run.event
        ]
        return 200, {"total_count": len(rows), "workflow_runs": rows}

    def find(self, number: str) -> Run:
        """Return a run."""
        return next(run for run in self.runs if run.id == int(number))

    def jobs(self, number: str) -> Answer:
        """Return the jobs of a run."""
        end = f"2026-01-02T00:00:{self.times.get(int(number), 40):02}Z"
        times = {"started_at": "2026-01-02T00:00:00Z", "completed_at": end}
        return 200, {"jobs": [{"name": name} | times for name in self.find(number).jobs]}

    def press(self, number: str, kind: str) -> Answer:
        """Re-run or cancel a run: actions/workflow-runs.

        The endpoint that approves a run is for those of forks alone. Whether a re-run releases a
        run that waits for approval, and whether a cancelled job is a failed one (dd-trace-js#8673
        has yes, sglang#34057 no), is not written: with `kinder` off neither is so, and a person
        presses where the re-run was refused.
        """
        run = self.find(number)
        if not self.kinder and kind == "rerun" and run.conclusion == "action_required":
            self.approve(next(pull for pull in self.pulls.values() if pull.branch == run.branch))
            return 403, {"message": "This workflow run is waiting for approval"}
        if not self.kinder and kind == "rerun-failed-jobs" and run.conclusion == "cancelled":
            return 403, {"message": "This workflow run has no failed jobs"}
        if kind == "approve":
            return 403, {"message": "This run is not from a fork pull request"}
        if kind == "cancel":
            if run.status != "in_progress":
                return 409, {"message": "Cannot cancel a workflow run that is completed."}
            self.cancel(run)
            return 202, {}
        if run.status != "completed":
            return 403, {"message": "This workflow is already running"}
        if kind == "rerun-failed-jobs" and run.conclusion == "success":
            return 403, {"message": "This workflow run has no failed jobs"}
        self.rerun(run)
        return 201, {}

    def variable(self, body: Any) -> Answer:
        """Set a variable of Actions."""
        self.variables[body["name"]] = body["value"]
        return 201, {}

    # Rules

    def rules(self, body: Any) -> Answer:
        """List rulesets, or import one: none in a private repository of the Free plan."""
        if self.plan == "free":
            return 403, {"message": UPGRADE}
        if body is None:
            return 200, [{"id": number} for number in self.rulesets]
        number = 1 + max(self.rulesets, default=0)
        self.rulesets[number] = body
        return 201, {"id": number} | body

    def unrule(self, number: int) -> Answer:
        """Delete a ruleset."""
        return (204, None) if self.rulesets.pop(number, None) else NOT_FOUND

    def blocked(self, pull: Pull) -> str:
        """Return why a pull request may not be merged, by its conflicts and the rulesets."""
        if self.conflicts(pull):
            return "Pull Request is not mergeable"
        head = self.head(self.ref(pull))
        passed = {row["name"] for row in self.check_rows(head, True) if row["ok"]}
        for rule in [rule for row in self.rulesets.values() for rule in row["rules"]]:
            given = rule.get("parameters", {})
            if given.get("required_approving_review_count"):  # nobody approves their own
                return "At least 1 approving review is required by reviewers with write access."
            wanted = {row["context"] for row in given.get("required_status_checks", ())}
            if missing := sorted(wanted - passed):
                return f'Required status check "{missing[0]}" is expected.'
            strict = given.get("strict_required_status_checks_policy")
            if strict and self.git("merge-base", "main", head) != self.head("main"):
                return "This branch must be up-to-date with the base branch."
        return ""

    def check_rows(self, sha: str, counted: bool = False) -> list[dict[str, Any]]:
        """Return the checks of a commit; those of a run by hand do not count in a pull request."""
        return [
            {"name": name, "conclusion": result, "ok": result == "success"}
            for run in self.runs
            if run.sha == sha and not (counted and run.event == "workflow_dispatch")
            for name, result in run.jobs.items()
        ]

    def check_runs(self, sha: str) -> Answer:
        """Return the checks of a commit: checks/runs."""
        rows = [row | {"app": {"id": ACTIONS_ID}} for row in self.check_rows(sha)]
        return 200, {"total_count": len(rows), "check_runs": rows}

    # Pull requests

    def open_pull(self, body: Any) -> Answer:
        """Open a pull request as a person, whose checks then start at once."""
        pull = Pull(1 + max(self.pulls, default=0), body["head"], author=OWNER)
        self.pulls[pull.number] = pull
        self.waiting.extend(self.checks(pull, "User"))
        return 201, self.show(pull.number)

    def show(self, number: int) -> dict[str, Any]:
        """Return a pull request; `mergeable` is null until it was computed: pulls/pulls, "Get"."""
        pull = self.pulls[number]
        facts = self.pull_facts(pull) | {"merged": pull.state == "merged"}
        place = facts["head"]["sha"], self.head("main")
        known = self.computed.get(number) == place
        self.computed[number] = place
        return facts | {"mergeable": not self.conflicts(pull) if known else None}

    def merge(self, number: int, body: Any) -> Answer:
        """Merge a pull request: pulls/pulls, "Merge a pull request"."""
        pull = self.pulls[number]
        head = self.head(self.ref(pull))
        if body["sha"] != head:
            return 409, {"message": "Head branch was modified. Review and try the merge again."}
        if why := self.blocked(pull):
            return 405, {"message": f"Repository rule violations found\n\n{why}"}
        made = self.merged("main", head)
        self.git("update-ref", "refs/heads/main", made)
        pull.state = "merged"
        self.on_main()
        return 200, {"merged": True, "sha": made}

    def update(self, number: int, body: Any) -> Answer:
        """Merge main into a branch: pulls/pulls, "Update a pull request branch"."""
        pull = self.pulls[number]
        head = self.head(self.ref(pull))
        if body["expected_head_sha"] != head or self.conflicts(pull):
            return 422, {"message": "merge conflict between base and head"}
        self.git("update-ref", f"refs/heads/{pull.branch}", self.merged(head, "main"))
        self.waiting.extend(self.checks(pull, "User"))
        return 202, {"message": "Updating pull request branch."}

    def merged(self, one: str, two: str) -> str:
        """Return a commit that merges two without conflicts."""
        tree = self.git("merge-tree", "--write-tree", one, two)
        return self.git("commit-tree", tree, "-p", one, "-p", two, "-m", "Merge")
