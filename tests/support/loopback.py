"""A GitHub on loopback: repository, API, and a runner that runs the real workflow files by act.

It grants each job what the workflow file's `permissions` grant it and refuses the rest, and
records every call. What a job's own token pushes starts runs of `pull_request` that wait for a
person's approval (docs.github.com, "Use GITHUB_TOKEN for authentication in workflows", June 2026);
what an App's token pushes starts them at once.
"""

import base64
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
from typing import Any

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
    (re.compile(r"uses: \$/"), "uses: ./"),
)
FIRST_ISSUE = 101  # pull requests, which GitHub counts with them, have two digits here
needs_bash = pytest.mark.skipif(sys.platform == "win32", reason="the jobs' shell is bash")
# What GitHub asks for: method, path, permission, level. Each as its page of
# docs.github.com/rest names it, "Fine-grained access tokens for ..."; for GraphQL its mutation.
NEEDED = [
    ("GET", r"/actions/runs/\d+", "actions", "read"),  # actions/workflow-runs
    ("GET", r"/actions/runs/\d+/artifacts", "actions", "read"),  # actions/artifacts
    ("GET", r"/actions/artifacts/\d+/zip", "actions", "read"),
    ("GET", r"/actions/caches", "actions", "read"),  # actions/cache
    ("GET", r"/compare/.*", "contents", "read"),  # commits/commits
    ("GET", r"/git/trees/.*", "contents", "read"),  # git/trees
    ("POST", r"/graphql", "contents", "write"),
    ("POST", r"/git/refs", "contents", "write"),
    ("DELETE", r"/git/refs/heads/.*", "contents", "write"),
    ("GET", r"/pulls", "pull-requests", "read"),
    ("POST", r"/pulls", "pull-requests", "write"),
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
        return [f"refs-pull-{payload['number']}-merge", "refs-heads-main"]
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
        self.app = False  # whether an App's token makes the call
        self.running = ""  # the workflow whose jobs call now
        self.may_open = True  # the setting: Actions may create pull requests
        self.failures: deque[tuple[int, dict[str, str]]] = deque()  # answers of the next calls
        self.variables: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", self.origin], check=True)
        for setting in ("uploadpack.allowAnySHA1InWant", "uploadpack.allowFilter"):
            self.git("config", setting, "true")

    def __enter__(self) -> "GitHub":
        """Listen on a free port of loopback."""
        github = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                github.answer(self)

            do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

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
        payload = {"number": pull.number, "action": "synchronize", "sender": {"type": sender}}
        payload["pull_request"] = self.pull_facts(pull)
        head = self.head(self.ref(pull))
        names = ("pull-request.yml", "ci.yml")
        return [("pull_request", name, head, payload) for name in names]

    def pushed_by_bot(self, pull: Pull, app: bool) -> None:
        """Start the checks of what a bot pushed, or let them wait for approval."""
        checks = self.checks(pull, "Bot")
        if app:
            self.waiting.extend(checks)
        else:
            self.unapproved[pull.number] = checks

    def approve(self, pull: Pull) -> None:
        """Press "Approve workflows to run" on the runs that wait for it."""
        self.waiting.extend(self.unapproved.pop(pull.number))

    def settle(self) -> list[Run]:
        """Run what is started, and what that starts; return the runs."""
        before = len(self.runs)
        while self.waiting:
            event, workflow, sha, payload = self.waiting.popleft()
            if workflow == "ci.yml":  # its jobs are the tests themselves: a test of its own
                self.runs.append(Run(len(self.runs) + 1, workflow, event, "", sha))
                self.runs[-1].jobs = {"required": "success"}
                continue
            done = {"workflow_run": self.act(workflow, event, sha, payload).facts()}
            if workflow == "pull-request.yml":
                self.waiting.append(("workflow_run", "comment.yml", self.head("main"), done))
        return self.runs[before:]

    def mergeable(self, pull: Pull) -> bool:
        """Say whether the checks that the ruleset requires have passed on the head."""
        rules = json.loads((ROOT / ".github" / "ruleset.json").read_text("utf-8"))["rules"]
        (required,) = (rule for rule in rules if rule["type"] == "required_status_checks")
        names = {check["context"] for check in required["parameters"]["required_status_checks"]}
        checks: dict[str, str] = {}
        for run in self.runs:
            if run.sha == self.head(self.ref(pull)):
                checks |= run.jobs
        return all(checks.get(name) == "success" for name in names)

    # The runner

    def act(self, workflow: str, event: str, sha: str, payload: dict[str, Any]) -> Run:
        """Run a workflow file, as it stands in the commit, to its end."""
        pull = payload.get("pull_request", {})
        branch = pull.get("head", {}).get("ref") or payload.get("ref", "").removeprefix(
            "refs/heads/"
        )
        number = 1 + sum(run.workflow == workflow for run in self.runs)
        run = Run(len(self.runs) + 1, workflow, event, branch or "main", sha, number=number)
        run.actor = payload.get("sender", {"type": "User"})["type"]
        run.source = pull.get("head", {}).get("repo", {}).get("full_name", FULL_NAME)
        self.runs.append(run)
        self.running = workflow
        place = self.folder / "runs" / str(run.id)
        source = place / "source"
        source.mkdir(parents=True)
        for command in (
            ["git", "init", "-q", "-b", branch or "main"],
            ["git", "fetch", "-q", "--depth", "1", self.origin.as_uri(), sha],
            ["git", "reset", "-q", "--hard", "FETCH_HEAD"],
            ["git", "remote", "add", "origin", f"https://github.com/{FULL_NAME}"],
        ):
            subprocess.run(command, cwd=source, check=True, env=environment())
        whole = {"full_name": FULL_NAME, "name": NAME, "owner": owner_of(FULL_NAME)}
        payload = payload | {"repository": whole | {"default_branch": "main"}}
        (place / "event.json").write_text(json.dumps(payload), "utf-8")
        given = {
            "GITHUB_API_URL": self.url,
            "GITHUB_REPOSITORY": FULL_NAME,
            "GITHUB_RUN_ID": str(run.id),
            "GITHUB_RUN_NUMBER": str(run.number),
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
        done = subprocess.run(command, cwd=source, env=env, capture_output=True, timeout=600)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == b"{"]
        run.log = "".join(line["msg"].rstrip("\n") + "\n" for line in lines)
        run.log += done.stderr.decode()
        for line in lines:
            if "jobResult" in line:
                run.jobs[line["jobID"]] = line["jobResult"]
        shutil.rmtree(place / "cache", ignore_errors=True)
        return run

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
        lacking = self.lacks(job, method, path)
        self.app = "token-of-an-app" in request.headers.get("Authorization", "")
        if self.failures:
            status, headers = self.failures.popleft()
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
        granted = yaml.safe_load(text)["jobs"].get(job, {}).get("permissions", {})
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
            "base": {"ref": "main", "sha": self.head("main")},
        }

    def serve(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        """Return status and content of a call that is allowed."""
        parts = path.strip("/").split("/")
        page = slice(100 * (int(query.get("page", 1)) - 1), 100 * int(query.get("page", 1)))
        if parts[:2] == ["actions", "runs"] and len(parts) == 3:
            return 200, next(run for run in self.runs if run.id == int(parts[2])).facts()
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
            names = self.git("diff", "--name-only", "-z", "--no-renames", span).split("\0")
            return 200, {"files": [{"filename": name} for name in names if name][:300]}
        if parts[:2] == ["git", "trees"]:
            rows = self.git("ls-tree", "-r", "-z", parts[2]).split("\0")
            tree = [{"path": row.split("\t", 1)[1], "mode": row.split()[0]} for row in rows if row]
            return 200, {"tree": tree, "truncated": False}
        if parts == ["graphql"]:
            return 200, self.commit(body["variables"]["input"])
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
            return 200, self.pulls[int(parts[1])].comments[page]
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

    def change_ref(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Make a branch, or delete one."""
        if method == "DELETE":
            self.git("update-ref", "-d", urllib.parse.unquote(path.removeprefix("/git/")))
            return 204, None
        if self.git("for-each-ref", body["ref"]):
            return 422, {"message": "Reference already exists"}
        self.git("update-ref", body["ref"], body["sha"])
        return 201, {"ref": body["ref"]}

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

    def commit(self, given: dict[str, Any]) -> dict[str, Any]:
        """Do createCommitOnBranch."""
        branch = given["branch"]["branchName"]
        head = self.head(branch)
        if head != given["expectedHeadOid"]:
            return {"errors": [{"message": f"Expected branch to point to {head}"}]}
        self.git("read-tree", head)
        for addition in given["fileChanges"]["additions"]:
            data = base64.b64decode(addition["contents"])
            blob = self.git("hash-object", "-w", "--stdin", data=data)
            entry = f"100644,{blob},{addition['path']}"
            self.git("update-index", "--add", "--cacheinfo", entry)
        tree = self.git("write-tree")
        made = self.git("commit-tree", tree, "-p", head, "-m", given["message"]["headline"])
        self.git("update-ref", f"refs/heads/{branch}", made)
        for pull in self.pulls.values():
            if (pull.state, pull.source, pull.branch) == ("open", FULL_NAME, branch):
                self.pushed_by_bot(pull, self.app)
        return {"data": {"createCommitOnBranch": {"commit": {"oid": made}}}}
