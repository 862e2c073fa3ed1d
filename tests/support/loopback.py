"""A GitHub on loopback: repository, API, and a runner that runs the real workflow files by act.

It grants each job what the workflow file's `permissions` grant it and refuses the rest, and
records every call. Its rules, which act does not know:

- What a job's own token pushes starts runs of `pull_request` that wait for a person's approval
  (docs.github.com, "Use GITHUB_TOKEN for authentication in workflows", June 2026; community
  #199292). Such a run completes as `action_required`, and `workflow_run` fires for it. What an
  App's token pushes starts them at once.
- A branch that conflicts with its base starts no `pull_request` run (community #26304).
- The checks of a run that `workflow_dispatch` started are on the commit and do not count in the
  pull request (measured: pfBlockerNG #911, open-agreements #393).
- Of the runs in one concurrency group one runs and one waits: a third cancels the second, unless
  the group has `queue: max` (docs.github.com, "Control the concurrency of workflows and jobs").
- A token of a job cannot push a commit that changes workflow files (docs.github.com,
  "GITHUB_TOKEN", permissions: there is none called workflows).
- A required check counts from its integration alone where the ruleset names one; GitHub Actions
  is 15368 (docs.github.com/rest/repos/rules).
"""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
import yaml
from conftest import ROOT, environment
from records import FULL_NAME, NAME, Call, Pull, Run, owner_of

BOT = {"login": "github-actions[bot]"}
ACTIONS = ROOT / "tests" / "workflows" / "actions"
# What act 0.2.89 does not know, and what it runs instead: keys that it stops at
# (nektos/act#6044, #6086), and the syntax for an action of the same repository (GitHub's
# changelog, 2026-07-30).
NEWER = (
    (re.compile(r"^ *cache-mode: .*\n", re.M), ""),
    (re.compile(r", deployment: false"), ""),
    (re.compile(r"^ *queue: max.*\n", re.M), ""),
    (re.compile(r"uses: \$/"), "uses: ./"),
)
STATUSES = {"A": "added", "D": "removed", "M": "modified", "T": "changed", "R": "renamed"}
ACTIONS_ID = 15368  # GitHub Actions as an integration
FIRST_ISSUE = 101  # pull requests, which GitHub counts with them, have two digits here
needs_bash = pytest.mark.skipif(sys.platform == "win32", reason="the jobs' shell is bash")
# What GitHub asks for: method, path, permission, level. Each as its page of
# docs.github.com/rest names it, "Fine-grained access tokens for ...";
NEEDED = [
    ("GET", r"/actions/runs/\d+", "actions", "read"),  # actions/workflow-runs
    ("GET", r"/actions/runs/\d+/jobs", "actions", "read"),  # actions/workflow-jobs
    ("GET", r"/actions/runs/\d+/artifacts", "actions", "read"),  # actions/artifacts
    ("GET", r"/actions/artifacts/\d+/zip", "actions", "read"),
    ("GET", r"/actions/caches", "actions", "read"),  # actions/cache
    ("GET", r"/compare/.*", "contents", "read"),  # commits/commits
    ("GET", r"/contents/.*", "contents", "read"),  # repos/contents
    ("GET", r"/git/trees/.*", "contents", "read"),  # git/trees
    ("GET", r"/git/matching-refs/heads/.*", "contents", "read"),  # git/refs
    ("POST", r"/git/(trees|commits)", "contents", "write"),
    ("PATCH", r"/git/refs/heads/.*", "contents", "write"),
    ("POST", r"/statuses/[0-9a-f]{40}", "statuses", "write"),  # commits/statuses
    ("GET", r"/deployments", "deployments", "read"),  # deployments/deployments
    ("POST", r"/deployments", "deployments", "write"),
    ("POST", r"/deployments/\d+/statuses", "deployments", "write"),  # deployments/statuses
    ("POST", r"/git/refs", "contents", "write"),
    ("DELETE", r"/git/refs/heads/.*", "contents", "write"),
    ("GET", r"/pulls", "pull-requests", "read"),
    ("POST", r"/pulls", "pull-requests", "write"),
    ("GET", r"/issues/\d\d\d/comments", "issues", "read"),
    ("GET", r"/issues/\d+/comments", "pull-requests", "read"),
    ("POST", r"/issues/\d\d\d/comments", "issues", "write"),
    ("POST", r"/issues/\d+/comments", "pull-requests", "write"),
    ("PATCH", r"/issues/comments/\d+", "pull-requests", "write"),
    ("GET", r"/issues", "issues", "read"),
    ("POST", r"/issues", "issues", "write"),
    ("PATCH", r"/issues/\d+", "issues", "write"),
]


def cache_refs(payload: dict[str, Any]) -> list[str]:
    """Return the refs whose caches a run searches, in order: its own, then those of its base.

    docs.github.com/actions/reference/workflows-and-actions/dependency-caching, "Restrictions for
    accessing a cache".
    """
    if "pull_request" in payload:
        base = payload["pull_request"]["base"]["ref"]
        return [f"refs-pull-{payload['number']}-merge", f"refs-heads-{base}"]
    return [payload.get("ref", "refs/heads/main").replace("/", "-")]


class GitHub:
    """The server; `with GitHub(folder) as github`."""

    def __init__(self, folder: Path) -> None:
        """Make an empty repository in a folder."""
        self.folder = folder
        self.origin = folder / "origin.git"
        self.artifacts = folder / "artifacts"
        self.artifacts.mkdir(parents=True)
        self.caches = folder / "caches"  # by ref, with / as -, and key
        self.pulls: dict[int, Pull] = {}
        self.issues: list[dict[str, Any]] = []
        self.runs: list[Run] = []
        self.calls: list[Call] = []
        self.leaks: list[str] = []
        self.waiting: deque[tuple[str, str, str, dict[str, Any]]] = deque()
        self.unapproved: dict[int, list[tuple[str, str, str, dict[str, Any]]]] = {}
        self.statuses: list[dict[str, Any]] = []
        self.deployments: list[dict[str, Any]] = []
        self.app = False  # whether an App's token makes the call
        self.running = ""  # the workflow whose jobs call now
        self.may_open = True  # the setting: Actions may create pull requests
        # Answers of the next calls; None: as it is.
        self.failures: deque[tuple[int, dict[str, str]] | None] = deque()
        self.private = False
        self.process: subprocess.Popen[bytes] | None = None  # act
        self.variables: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", self.origin], check=True)
        for setting in ("uploadpack.allowAnySHA1InWant", "uploadpack.allowFilter"):
            self.git("config", setting, "true")

    def __enter__(self) -> Self:
        """Listen on a free port of loopback."""
        github = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                github.answer(self)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *reason: object) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def git(self, *arguments: str, data: bytes | None = None) -> str:
        """Run git in the bare repository, whose index makes the commits of the API."""
        command = ["git", "--git-dir", str(self.origin), *arguments]
        done = subprocess.run(command, input=data, capture_output=True, env=environment())
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def head(self, branch: str) -> str:
        """Return the commit of a branch, or of a fork's as pull/N/head."""
        return self.git("rev-parse", branch if "/" in branch else f"refs/heads/{branch}")

    def ref(self, pull: Pull) -> str:
        """Return where the head of a pull request lies in this repository."""
        own = pull.source == FULL_NAME
        return f"refs/heads/{pull.branch}" if own else f"refs/pull/{pull.number}/head"

    # What people do

    def push(self, folder: Path, pull: Pull) -> None:
        """Push a person's commit to a pull request's branch: its checks start."""
        self.pulls[pull.number] = pull
        command = ["git", "push", "-q", str(self.origin), f"HEAD:{self.ref(pull)}"]
        subprocess.run(command, cwd=folder, check=True, env=environment())
        self.waiting.extend(self.checks(pull, "User"))

    def checks(self, pull: Pull, sender: str) -> list[tuple[str, str, str, dict[str, Any]]]:
        """Return the runs that an update of a pull request starts."""
        if self.conflicts(pull):
            return []
        login = pull.author if sender == "User" else BOT["login"]
        payload: dict[str, Any] = {"number": pull.number, "action": "synchronize"}
        payload |= {"sender": {"type": sender, "login": login}}
        payload["pull_request"] = self.pull_facts(pull)
        head = self.head(self.ref(pull))
        names = [n for n in ("pull-request.yml", "ci.yml") if self.starts(n, head, pull.base)]
        return [("pull_request", name, head, payload) for name in names]

    def starts(self, workflow: str, head: str, base: str) -> bool:
        """Say whether a workflow, as it stands in a commit, runs for pull requests to a base.

        A commit of a test that has no workflows is given this project's.
        docs.github.com/actions/reference/workflows-and-actions/workflow-syntax,
        "on.<pull_request|pull_request_target>.<branches|branches-ignore>".
        """
        path = f".github/workflows/{workflow}"
        kept = self.git("ls-tree", "--name-only", head, path)
        text = self.git("show", f"{head}:{path}") if kept else (ROOT / path).read_text("utf-8")
        asked = yaml.safe_load(text)[True]["pull_request"] or {}  # YAML 1.1 reads `on` as true
        return base in asked.get("branches", [base])

    def retarget(self, pull: Pull, base: str) -> None:
        """Change the base of a pull request, as its author may.

        That is the activity `edited`, which starts no run unless a workflow names it under `types`
        (docs.github.com/actions/reference/workflows-and-actions/events-that-trigger-workflows).
        """
        pull.base = base

    def open_link(self, branch: str) -> Pull:
        """Open the pull request of a branch as a person, whose checks then start at once."""
        pull = Pull(1 + max(self.pulls, default=0), branch, author="maintainer")
        self.pulls[pull.number] = pull
        self.waiting.extend(self.checks(pull, "User"))
        return pull

    def conflicts(self, pull: Pull) -> bool:
        """Say whether a pull request cannot be merged into main as it is."""
        command = ["git", "--git-dir", str(self.origin), "merge-tree", "--write-tree"]
        command += [self.head("main"), self.head(self.ref(pull))]
        return subprocess.run(command, capture_output=True, env=environment()).returncode == 1

    def pushed_by_bot(self, pull: Pull, app: bool) -> None:
        """Start the checks of what a bot pushed, or let them wait for approval."""
        checks = self.checks(pull, "Bot")
        if app:
            self.waiting.extend(checks)
            return
        self.unapproved[pull.number] = checks
        for _, workflow, sha, payload in checks:
            if workflow == "pull-request.yml":
                run = Run(len(self.runs) + 1, workflow, "pull_request", pull.branch, sha)
                run.number, run.actor = self.number(workflow), "Bot"
                run.login, run.payload = BOT["login"], payload
                run.jobs = {"review": "action_required"}
                self.runs.append(run)
                self.ended(run)

    def approve(self, pull: Pull) -> None:
        """Press "Approve workflows to run" on the runs that wait for it."""
        self.waiting.extend(self.unapproved.pop(pull.number))

    def rerun(self, run: Run) -> None:
        """Press "Re-run failed jobs": the same run, at the same commit, once more."""
        run.attempt, run.status = run.attempt + 1, "queued"
        self.waiting.append((run.event, run.workflow, run.sha, run.payload | {"run": run}))

    def dispatch(self, workflow: str, branch: str, inputs: dict[str, str]) -> None:
        """Press "Run workflow" on a branch."""
        payload = {"ref": f"refs/heads/{branch}", "inputs": inputs}
        payload |= {"sender": {"type": "User", "login": "student"}}
        self.waiting.append(("workflow_dispatch", workflow, self.head(branch), payload))

    def number(self, workflow: str) -> int:
        """Return the number of a workflow's next run."""
        return 1 + max((run.number for run in self.runs if run.workflow == workflow), default=0)

    def ended(self, run: Run) -> None:
        """Start comment.yml for a run that has ended, by the rule of concurrency groups."""
        text = (ROOT / ".github" / "workflows" / "comment.yml").read_text("utf-8")
        same = [
            waiting
            for waiting in self.waiting
            if waiting[0] == "workflow_run"
            and waiting[3]["workflow_run"]["head_branch"] == run.branch
        ]
        if len(same) > 1 and "queue: max" not in text:
            self.waiting.remove(same[1])
        payload = {"workflow_run": run.facts(), "action": "completed"}
        self.waiting.append(("workflow_run", "comment.yml", self.head("main"), payload))

    def settle(self) -> list[Run]:
        """Run what is started, and what that starts; return the runs."""
        before = len(self.runs)
        while self.waiting:
            event, workflow, sha, payload = self.waiting.popleft()
            if workflow == "ci.yml":  # its jobs are the tests themselves: a test of its own
                self.runs.append(Run(len(self.runs) + 1, workflow, event, "", sha))
                self.runs[-1].jobs = {"required": "success"}
                continue
            run = self.act(workflow, event, sha, payload)
            if workflow == "pull-request.yml":
                self.ended(run)
        return self.runs[before:]

    def mergeable(self, pull: Pull) -> bool:
        """Say whether the checks that the ruleset requires have passed on the head."""
        rules = json.loads((ROOT / ".github" / "ruleset.json").read_text("utf-8"))["rules"]
        (required,) = (rule for rule in rules if rule["type"] == "required_status_checks")
        wanted = required["parameters"]["required_status_checks"]
        head = self.head(self.ref(pull))
        checks: dict[tuple[str, int | None], str] = {}
        for status in self.statuses:  # by whom a workflow's token is, or any writer
            if status["sha"] == head:
                checks[status["context"], status["integration_id"]] = status["state"]
        for run in self.runs:
            if run.sha == head and run.event != "workflow_dispatch":
                checks |= {(name, ACTIONS_ID): result for name, result in run.jobs.items()}
        passed = {place for place, result in checks.items() if result == "success"}
        return not self.conflicts(pull) and all(
            any(
                name == row["context"] and row.get("integration_id") in (None, source)
                for name, source in passed
            )
            for row in wanted
        )

    # The runner

    def act(self, workflow: str, event: str, sha: str, payload: dict[str, Any]) -> Run:
        """Run a workflow file, as it stands in the commit, to its end."""
        pull = payload.get("pull_request", {})
        branch = pull.get("head", {}).get("ref") or payload.get("ref", "").removeprefix(
            "refs/heads/"
        )
        run = payload.get("run") or Run(
            len(self.runs) + 1, workflow, event, branch or "main", sha, number=self.number(workflow)
        )
        payload = {key: value for key, value in payload.items() if key != "run"}
        sender = payload.get("sender", {"type": "User", "login": "student"})
        run.actor, run.login, run.payload, run.jobs = sender["type"], sender["login"], payload, {}
        run.source = pull.get("head", {}).get("repo", {}).get("full_name", FULL_NAME)
        run.status = "in_progress"
        if run not in self.runs:
            self.runs.append(run)
        self.running = workflow
        place = self.folder / "runs" / f"{run.id}-{run.attempt}"
        source = place / "source"
        source.mkdir(parents=True)
        for command in (
            ["git", "init", "-q", "-b", branch or "main"],
            ["git", "fetch", "-q", "--depth", "1", self.origin.as_uri(), sha],
            ["git", "reset", "-q", "--hard", "FETCH_HEAD"],
            ["git", "remote", "add", "origin", f"https://github.com/{FULL_NAME}"],
        ):
            subprocess.run(command, cwd=source, check=True, env=environment())
        whole: dict[str, Any] = {"full_name": FULL_NAME, "name": NAME, "owner": owner_of(FULL_NAME)}
        whole |= {"default_branch": "main", "private": self.private}
        payload = payload | {"repository": whole}
        (place / "event.json").write_text(json.dumps(payload), "utf-8")
        given = {
            "GITHUB_API_URL": self.url,
            "GITHUB_REPOSITORY": FULL_NAME,
            "GITHUB_RUN_ID": str(run.id),
            "GITHUB_RUN_NUMBER": str(run.number),
            "GITHUB_RUN_ATTEMPT": str(run.attempt),
            "ORIGIN": self.origin.as_uri(),
            "ARTIFACTS": str(self.artifacts),
            "CACHES": str(self.caches),
            "CACHE_REFS": " ".join(cache_refs(payload)),
            "PROJECT": str(ROOT),
            **self.environment,
        }
        command = [str(Path(sys.executable).parent / "act"), event, "--json"]
        command += ["-W", f".github/workflows/{workflow}", "-P", "ubuntu-24.04=-self-hosted"]
        command += ["-P", "windows-2025=-self-hosted", "--eventpath", str(place / "event.json")]
        command += ["--no-skip-checkout", "--no-cache-server", "--artifact-server-addr"]
        command += ["127.0.0.1", "--action-cache-path", str(place / "cache")]
        command += ["--secret", "GITHUB_TOKEN=the-token-of-a-job"]
        for name, value in given.items():
            command += ["--env", f"{name}={value}"]
        for name, value in self.variables.items():
            command += ["--var", f"{name}={value}"]
        uses = set()
        for path in source.joinpath(".github").glob("**/*.yml"):
            text = path.read_text("utf-8")
            for pattern, replacement in NEWER:
                text = pattern.sub(replacement, text)
            path.write_text(text, "utf-8")
            uses |= set(re.findall(r"uses: ([\w-]+/[\w-]+)[\w/-]*@(\S+)", text))
        for name, version in sorted(uses):
            fake = ACTIONS / name.replace("/", "-")
            command += ["--local-repository", f"{name}@{version}={fake}"]
        env = environment() | {"HOME": str(place)}
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, cwd=source, env=env, stdout=pipe, stderr=pipe
        ) as self.process:
            if run.status == "cancelling":  # before act was there
                self.cancel(run)
            try:
                out, err = self.process.communicate(timeout=600)
            finally:
                self.process.kill()
        lines = [json.loads(line) for line in out.splitlines() if line[:1] == b"{"]
        run.log = "".join(line["msg"].rstrip("\n") + "\n" for line in lines) + err.decode()
        for line in lines:
            if "jobResult" in line:
                run.jobs[line["jobID"]] = line["jobResult"]
        if run.status == "cancelling":
            run.jobs = {"review": "cancelled"}
        shutil.rmtree(place / "cache", ignore_errors=True)
        run.status = "completed"
        return run

    def cancel(self, run: Run) -> None:
        """Press "Cancel workflow" on the run that is at work."""
        run.status = "cancelling"
        if self.process is None or self.process.poll() is not None:
            return
        act = psutil.Process(self.process.pid)
        for process in [act, *act.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    # The API

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request; record it."""
        size = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(size)) if size else None
        url = urllib.parse.urlsplit(request.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        path = url.path.removeprefix(f"/repos/{FULL_NAME}")
        method = request.command
        if path.startswith("/storage/"):  # another host, where artifacts lie
            if request.headers.get("Authorization"):
                self.leaks.append(request.path)
            self.send(request, 200, Path(urllib.parse.unquote(path[8:])).read_bytes())
            return
        job = request.headers.get("User-Agent", "").partition("/")[2]
        self.app = "token-of-an-app" in request.headers.get("Authorization", "")
        lacking = self.lacks(job, method, path)
        if failure := self.failures.popleft() if self.failures else None:
            status, headers = failure
            content: Any = {"message": "Server Error"}
            self.calls.append(Call(self.running, job, method, path, status))
            self.send(request, status, json.dumps(content).encode(), headers)
            return
        if lacking:
            status, content = 403, {"message": f"Resource not accessible by integration: {lacking}"}
        else:
            status, content = self.serve(method, path, query, body)
        self.calls.append(Call(self.running, job, method, path, status))
        if status == 302:
            request.send_response(302)
            request.send_header("Location", str(content))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        self.send(request, status, b"" if content is None else json.dumps(content).encode())

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send an answer."""
        request.send_response(status)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def lacks(self, job: str, method: str, path: str) -> str:
        """Return the permission that a job lacks for a call, or nothing."""
        if not self.running:
            return ""  # a test of one script, without a workflow
        text = (ROOT / ".github" / "workflows" / self.running).read_text("utf-8")
        found = yaml.safe_load(text)["jobs"].get(job, {})
        granted = found.get("permissions", {})
        if (
            self.app
        ):  # its token has what the action is asked for (README of create-github-app-token)
            steps = [step.get("with") or {} for step in found.get("steps", [])]
            granted = {
                key.removeprefix("permission-"): level
                for step in steps
                for key, level in step.items()
                if key.startswith("permission-")
            }
        for known, pattern, permission, level in NEEDED:
            if known == method and re.fullmatch(pattern, path):
                has = granted.get(permission, "none")
                return "" if has == "write" or has == level else f"{permission}: {level}"
        return f"unknown call {method} {path}"

    def pull_facts(self, pull: Pull) -> dict[str, Any]:
        """Return a pull request as the API and its events give it."""
        head = self.head(self.ref(pull))
        return {
            "number": pull.number,
            "state": pull.state,
            "created_at": pull.created_at,
            "user": {"login": pull.author},
            "head": {"ref": pull.branch, "sha": head, "repo": {"full_name": pull.source}},
            "base": {"ref": pull.base, "sha": self.head(pull.base)},
        }

    def serve(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        """Return status and content of a call that is allowed."""
        parts = path.strip("/").split("/")
        page = slice(100 * (int(query.get("page", 1)) - 1), 100 * int(query.get("page", 1)))
        if parts[:2] == ["actions", "runs"] and len(parts) == 3:
            return 200, next(run for run in self.runs if run.id == int(parts[2])).facts()
        if parts[0] == "actions" and parts[-1] == "jobs":
            times: dict[str, str | None]
            times = {"started_at": "2026-01-02T00:00:00Z", "completed_at": "2026-01-02T00:00:59Z"}
            asks = dict.fromkeys(times)  # the job that asks has not ended
            jobs = [("ubuntu-24.04", times), ("windows-2025", times), ("ubuntu-24.04", asks)]
            return 200, {"jobs": [{"labels": [label], **row} for label, row in jobs]}
        if parts[:2] == ["actions", "runs"]:
            stems = sorted(path.stem for path in self.artifacts.joinpath(parts[2]).glob("*.zip"))
            artifacts = [
                {"id": 100 * int(parts[2]) + place, "name": name}
                for place, name in enumerate(stems)
                if name == query["name"]
            ]
            return 200, {"artifacts": artifacts}
        if parts[:2] == ["actions", "artifacts"]:
            run, number = divmod(int(parts[2]), 100)
            archive = sorted(self.artifacts.joinpath(str(run)).glob("*.zip"))[number]
            return 302, f"{self.url}/storage{archive}"
        if parts == ["actions", "caches"]:
            found = list(self.caches.joinpath(query["ref"].replace("/", "-")).glob("*"))
            return 200, {"total_count": len(found)}
        if parts[0] == "compare":
            base, head = urllib.parse.unquote(parts[1]).split("...")
            span = f"{base}...{head}"
            raw = iter(self.git("diff", "--raw", "-z", "--abbrev=40", "-M", span).split("\0"))
            files = []  # "renamed" names both (REST API, "Compare two commits")
            for row in filter(None, raw):
                kind, name = STATUSES[row.split()[4][0]], next(raw)
                old = {"previous_filename": name} if kind == "renamed" else {}
                name = next(raw) if old else name
                files.append({"filename": name, "sha": row.split()[3], "status": kind} | old)
            counts = self.git("rev-list", "--left-right", "--count", span).split()
            return 200, {
                "files": files[:300],
                "behind_by": int(counts[0]),
                "ahead_by": int(counts[1]),
            }
        if parts[0] == "contents":
            content = self.git("show", f"{query['ref']}:{path.removeprefix('/contents/')}")
            return 200, {"content": base64.b64encode(content.encode()).decode()}
        if parts[0] == "statuses":
            source = ACTIONS_ID if self.running and not self.app else None  # a job's token alone
            self.statuses.append({"sha": parts[1], "integration_id": source, **body})
            return 201, self.statuses[-1]
        if parts[0] == "deployments":
            return self.deployment(method, parts, query, body)
        if parts[:2] == ["git", "trees"] and method == "GET":
            rows = self.git("ls-tree", "-r", "-z", parts[2]).split("\0")
            tree = [{"path": row.split("\t", 1)[1], "mode": row.split()[0]} for row in rows if row]
            sha = self.git("rev-parse", f"{parts[2]}^{{tree}}")
            return 200, {"sha": sha, "tree": tree, "truncated": False}
        if parts[:2] == ["git", "matching-refs"]:
            refs = self.git("for-each-ref", "--format=%(refname)", f"refs/{'/'.join(parts[2:])}*")
            return 200, [{"ref": ref} for ref in refs.split()]
        if parts[0] == "git" and method == "POST" and parts[1] in ("trees", "commits"):
            return self.store(parts[1], body)
        if parts[:2] == ["git", "refs"]:
            return self.change_ref(method, path, body)
        if parts == ["pulls"] and method == "POST":
            return self.open(body)
        if parts == ["pulls"]:
            owner, _, branch = query.get("head", "").partition(":")
            return 200, [
                self.pull_facts(pull)
                for pull in reversed(self.pulls.values())
                if query["state"] in ("all", pull.state)
                and (not owner or (pull.source.partition("/")[0], pull.branch) == (owner, branch))
            ][page]
        if parts[-1] == "comments" and method == "GET":
            number = int(parts[1])
            if number >= FIRST_ISSUE:
                return 200, self.issue(number)["remarks"][page]
            return 200, self.pulls[number].comments[page]
        if parts[-1] == "comments":
            number = int(parts[1])
            issue = number >= FIRST_ISSUE
            comments = self.issue(number)["remarks"] if issue else self.pulls[number].comments
            comments.append({"id": 1000 * number + len(comments), "user": BOT, **body})
            return 201, comments[-1]
        if parts[:2] == ["issues", "comments"]:
            number, place = divmod(int(parts[2]), 1000)
            self.pulls[number].comments[place] |= body
            return 200, self.pulls[number].comments[place]
        if method == "GET":
            return 200, [issue for issue in self.issues if issue["state"] == "open"][page]
        if method == "POST":
            number, made = FIRST_ISSUE + len(self.issues), "2026-01-02T00:00:00Z"
            start = {"number": number, "state": "open", "created_at": made, "remarks": []}
            self.issues.append(start | body)
            return 201, self.issues[-1]
        self.issue(int(parts[1])).update(body)
        return 200, self.issue(int(parts[1]))

    def issue(self, number: int) -> dict[str, Any]:
        """Return an issue by its number."""
        return self.issues[number - FIRST_ISSUE]

    def deployment(
        self, method: str, parts: list[str], query: dict[str, str], body: Any
    ) -> tuple[int, Any]:
        """Create a deployment or its status, or list the newest first."""
        if method == "GET":
            of = [row for row in self.deployments if row["environment"] == query["environment"]]
            return 200, of[::-1][: int(query["per_page"])]
        if len(parts) > 1:
            self.deployments[int(parts[1])]["state"] = body["state"]
            return 201, {"state": body["state"]}
        assert body["auto_merge"] is False and body["required_contexts"] == []
        row = {"id": len(self.deployments), "sha": self.git("rev-parse", body["ref"]), **body}
        self.deployments.append(row)
        return 201, row

    def store(self, kind: str, body: Any) -> tuple[int, Any]:
        """Store an object of the Git database: docs.github.com/rest/git."""
        if kind == "trees":
            self.git("read-tree", body.get("base_tree", "--empty"))
            for row in body["tree"]:
                if row.get("sha", "") is None:
                    gone = f"0 {'0' * 40}\t{row['path']}\n"
                    self.git("update-index", "--index-info", data=gone.encode())
                else:
                    assert ("sha" in row) != ("content" in row)
                    data = row.get("content", "").encode()
                    sha = row.get("sha") or self.git("hash-object", "-w", "--stdin", data=data)
                    entry = f"{row['mode']},{sha},{row['path']}"
                    self.git("update-index", "--add", "--cacheinfo", entry)
            return 201, {"sha": self.git("write-tree")}
        parents = [word for parent in body["parents"] for word in ("-p", parent)]
        made = self.git("commit-tree", body["tree"], *parents, "-m", body["message"])
        return 201, {"sha": made}

    def change_ref(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Make a branch, move one forward, or delete one."""
        ref = urllib.parse.unquote(path.removeprefix("/git/"))
        if method == "PATCH":
            if not self.git("for-each-ref", ref):
                return 422, {"message": "Reference does not exist"}
            old = self.git("rev-parse", ref)
            if self.git("merge-base", old, body["sha"]) != old:
                return 422, {"message": "Update is not a fast forward"}
            if refusal := self.workflow_refusal(old, body["sha"]):
                return refusal
            self.git("update-ref", ref, body["sha"])
            self.moved(ref.removeprefix("refs/heads/"))
            return 200, {"ref": ref}
        if method == "DELETE":
            self.git("update-ref", "-d", ref)
            return 204, None
        if self.git("for-each-ref", body["ref"]):
            return 422, {"message": "Reference already exists"}
        if refusal := self.workflow_refusal(
            self.git("merge-base", "main", body["sha"]), body["sha"]
        ):
            return refusal
        self.git("update-ref", body["ref"], body["sha"])
        return 201, {"ref": body["ref"]}

    def workflow_refusal(self, old: str, new: str) -> tuple[int, Any] | None:
        """Return the answer to a commit that changes workflows, which no token here may push."""
        changed = self.git("diff", "--name-only", old, new, "--", ".github/workflows")
        text = "refusing to allow a GitHub App to create or update workflow"
        message = f"{text} `{changed.partition(chr(10))[0]}` without `workflows`"
        return (403, {"message": message}) if changed else None

    def moved(self, branch: str) -> None:
        """Start the checks of the pull requests from a branch that a bot has moved."""
        for pull in self.pulls.values():
            if (pull.state, pull.source, pull.branch) == ("open", FULL_NAME, branch):
                self.pushed_by_bot(pull, self.app)

    def open(self, body: Any) -> tuple[int, Any]:
        """Open a pull request."""
        if not self.may_open:
            text = "GitHub Actions is not permitted to create or approve pull requests."
            return 403, {"message": text}
        number = 1 + max(self.pulls, default=0)
        made = {"author": BOT["login"], "created_at": "2026-01-02T00:05:00Z", "body": body["body"]}
        self.pulls[number] = Pull(number, body["head"], **made)
        self.pushed_by_bot(self.pulls[number], self.app)
        return 201, self.pull_facts(self.pulls[number])
