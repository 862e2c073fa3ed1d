"""Pull requests on GitHub itself: `digits verify github NAME`, in a new private repository.

Input: the files of this commit, and in GITHUB_TOKEN a classic token of a person. A private
repository of that person is made with these files, the paths below are played in it by the REST
API, as a browser would, and it is deleted, whatever happened. Output: verified.json with the result
of each path, those that were not played and why, and the calls of the API; README's sentence.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks import verified
from benchmarks.verified import Found, NotPlayed, parsed, redacted, require, wait_for
from core.errors import DigitsError
from mlops import git
from mlops.bot import comment, github

API = "https://api.github.com"
SCOPES = {"repo", "workflow", "delete_repo"}
REVIEW, DEPLOY = "pull-request.yml", "deploy.yml"
OFF = ("ci.yml", "monitor.yml", "weekly.yml")  # would cost minutes and show nothing here
UNCHECKED = "required"  # the check of ci.yml, which no ruleset requires here
ACTIONS_ID = 15368  # GitHub Actions as the source of a check
REFUSED = 405  # of a merge: docs.github.com/rest/pulls/pulls, "Merge a pull request"
MINUTES = 150  # about fifteen runs of ten minutes and their comments
WAIT_SECONDS = 5400.0  # for a run: its jobs have an hour
POLL_SECONDS = 10.0
WORK_SECONDS = 60  # of a change that the pipeline does not read
UPLOAD_BYTES = 1_000_000  # of files in one request
EDIT = re.compile(r"^( *mistakes: )\d+", re.M)  # a key of params.yaml that runs a short stage
PATHS = {
    "path 9": "a README edited in the browser: done within a minute",
    "path 1": "params.yaml edited in the browser: commit by the bot, a press, checks",
    "path 8": "a run cancelled and re-run: green, one comment",
    "path 7": "the rulesets: a team's keeps an unapproved change out, a lone owner merges",
    "path 3": "Update branch: main's own changes do not count",
    "path 2": "two experiments in conflict: main merged by a manual run",
}
NOT_PLAYED = {
    "path 4": "a fork needs a second account",
    "path 5": "Dependabot and the weekly run start on their own days",
    "path 6": "it needs Azure: `digits verify azure`",
    "path 10": "it needs Azure; played is only that a job of main fills the caches",
    f"the check `{UNCHECKED}`": "ci.yml is off; the rulesets are imported without it",
    "another's approval": "it needs a second account",
    "a GitHub App": "it needs one that is installed",
    "the merge queue": "organizations alone have it",
}
PLAN = """\
With the token in GITHUB_TOKEN, about two hours long:
  make the private repository {name}, with the files of commit {commit}
  switch off {off} there
  play {paths}
  delete the repository, whatever fails
  write verified.json, without secrets and names, and README's sentence
Not played: {not_played}.
Cost: about {minutes} minutes of GitHub Actions, of the 2,000 a month that are free; no money else.
Token: a classic one with the scopes {scopes}: https://github.com/settings/tokens/new"""


class Calls(list[dict[str, Any]]):
    """The calls of the API, in order, and of the last one status and the token's scopes."""

    status = 0  # no answer
    scopes: str | None = None

    def add(self, request: urllib.request.Request, status: int, content: bytes) -> None:
        """Add a call, unless it repeats one with the same answer, as polling does."""
        place = urllib.parse.urlsplit(request.full_url)
        data = request.data if isinstance(request.data, bytes) else b""
        call = {"method": request.get_method(), "path": place.path, "status": status}
        call["query"] = dict(urllib.parse.parse_qsl(place.query))
        call |= {"request": shortened(parsed(data)), "response": shortened(parsed(content))}
        for old in reversed(self):
            if all(old[key] == call[key] for key in ("method", "path", "query")):
                if call["method"] == "GET" and old["response"] == call["response"]:
                    old["times"] = old.get("times", 1) + 1
                    return
                break
        self.append(call)


def shortened(value: Any, name: str = "") -> Any:
    """Return a body without links and with the beginning of long texts and lists."""
    if isinstance(value, dict):
        kept = {key: row for key, row in value.items() if key == "html_url" or key[-3:] != "url"}
        return {key: shortened(row, key) for key, row in kept.items() if key != "node_id"}
    if isinstance(value, list):
        return [shortened(row) for row in value[:30]]
    if isinstance(value, str):
        return value[: 60 if name == "content" else 3000]
    return value


@contextlib.contextmanager
def recorded() -> Iterator[Calls]:
    """Record the calls that the client of the workflows' jobs makes in this process."""
    calls, send = Calls(), urllib.request.urlopen

    def record(request: urllib.request.Request, **options: Any) -> io.BytesIO:
        calls.status = 0
        try:
            with send(request, **options) as answer:
                content, status, headers = answer.read(), answer.status, answer.headers
        except urllib.error.HTTPError as error:
            with error:
                content, status, headers = error.read(), error.code, error.headers
        calls.status, calls.scopes = status, headers.get("X-OAuth-Scopes")
        calls.add(request, status, content)
        if status >= 400:
            body = io.BytesIO(content)
            raise urllib.error.HTTPError(request.full_url, status, "", headers, body)
        return io.BytesIO(content)

    with patch.object(urllib.request, "urlopen", record):
        yield calls


class Verification:
    """The steps in one repository."""

    def __init__(self, calls: Calls, login: str, name: str) -> None:
        """Take the calls, and who owns the repository that is to be made."""
        self.calls, self.login, self.name = calls, login, name
        self.marker = f"Made by digits verify github, which deletes it: {uuid.uuid4()}"
        self.rulesets = False  # whether the plan has them
        self.words = self.one = self.two = 0  # pull requests: a README, two experiments
        self.second = ""  # the commit that `two` was opened with

    # Calls

    def status(self, method: str, path: str, body: object = None) -> int:
        """Call the API; return the status of the answer, also of a refusal."""
        try:
            github.api(method, path, body)
        except DigitsError:
            if not self.calls.status:
                raise  # no answer at all
        return self.calls.status

    def repository(self) -> dict[str, Any] | None:
        """Return the repository, None when there is none."""
        with contextlib.suppress(DigitsError):
            return github.api("GET", "")
        require(self.calls.status == 404, "the repository or none", self.calls.status)
        return None

    def wait(self, find: Callable[[], Found | None], expected: str) -> Found:
        return wait_for(find, expected, WAIT_SECONDS, POLL_SECONDS)

    def head(self, branch: str) -> str:
        return str(github.api("GET", f"/git/ref/heads/{branch}")["object"]["sha"])

    def pull(self, number: int) -> dict[str, Any]:
        """Return a pull request once GitHub has computed whether it can be merged."""

        def find() -> dict[str, Any] | None:
            found = github.api("GET", f"/pulls/{number}")
            return None if found["mergeable"] is None and not found["merged"] else found

        return self.wait(find, f"#{number}: mergeable or not")

    def run(
        self, sha: str, true: Callable[[Any], bool], event: str = "pull_request", file: str = REVIEW
    ) -> dict[str, Any]:
        """Return a workflow's newest run of a commit once something is true of it."""
        query = urllib.parse.urlencode({"head_sha": sha, "event": event})

        def find() -> dict[str, Any] | None:
            rows = github.api("GET", f"/actions/workflows/{file}/runs?{query}")["workflow_runs"]
            newest = max(rows, key=lambda row: row["run_number"], default=None)
            return newest if newest and true(newest) else None

        return self.wait(find, f"a run of {file} for {sha[:10]} ({event})")

    def ended(self, sha: str, conclusion: str, **place: str) -> dict[str, Any]:
        """Return the run of a commit when it has ended; require its conclusion."""
        found = self.run(sha, lambda row: row["status"] == "completed", **place)
        require(found["conclusion"] == conclusion, conclusion, found["conclusion"])
        return found

    def again(self, run: dict[str, Any]) -> dict[str, Any]:
        """Re-run the failed jobs of a run; return it when it has ended."""
        place = f"/actions/runs/{run['id']}"
        # Whether a cancelled job is a failed one: dd-trace-js#8673 has yes, sglang#34057 no.
        if self.status("POST", f"{place}/rerun-failed-jobs") >= 400:
            github.api("POST", f"{place}/rerun")
        return self.run(run["head_sha"], lambda row: newer(row, run) and done(row))

    def said(self, number: int, run: dict[str, Any], text: str) -> None:
        """Require a text in the one comment of a pull request, once it is of a run."""
        mark = (str(run["run_number"]), str(run["run_attempt"]))

        def find() -> str | None:
            rows = github.everything(f"/issues/{number}/comments?sort=created")
            bodies = [row["body"] for row in rows if row["user"]["login"] == github.BOT]
            require(len(bodies) <= 1, f"one comment on #{number}", len(bodies))
            of = [comment.MARKER.match(body) for body in bodies]
            return bodies[0] if of and of[0] and of[0].groups() == mark else None

        body = self.wait(find, f"the comment of run {mark[0]}, attempt {mark[1]}, on #{number}")
        require(text in body, f"{text!r} in the comment on #{number}", body[:500])

    def edit(self, branch: str, path: str, change: Callable[[str], str]) -> int:
        """Edit a file as the web editor does: branch, commit, pull request; return its number."""
        ref = {"ref": f"refs/heads/{branch}", "sha": self.head("main")}
        github.api("POST", "/git/refs", ref)
        found = github.api("GET", f"/contents/{path}?ref={branch}")
        text = change(base64.b64decode(found["content"]).decode())
        content = base64.b64encode(text.encode()).decode()
        body = {"message": f"Update {path}", "content": content, "sha": found["sha"]}
        github.api("PUT", f"/contents/{path}", body | {"branch": branch})
        pull = {"title": f"Update {path}", "head": branch, "base": "main"}
        return int(github.api("POST", "/pulls", pull)["number"])

    def committed(self, number: int, run: dict[str, Any]) -> str:
        """Return the bot's commit for a run, when it is there and the comment names it."""
        branch, before = run["head_branch"], run["head_sha"]
        made = self.wait(
            lambda: next((sha for sha in [self.head(branch)] if sha != before), None),
            f"a commit by the bot on {branch}",
        )
        self.said(number, run, f"are committed** as {made[:10]}. Its checks wait")
        return made

    def pressed(self, number: int, sha: str) -> dict[str, Any]:
        """Release the run that waits for approval; return it when it has ended with success."""
        waiting = self.ended(sha, "action_required")
        if self.status("POST", f"/actions/runs/{waiting['id']}/rerun") >= 400:
            page = f"https://github.com/{github.repository()}/pull/{number}"
            print(f'Press "Approve workflows to run" on {page}', flush=True)
        run = self.run(sha, lambda row: done(row) and row["conclusion"] != "action_required")
        require(run["conclusion"] == "success", "success", run["conclusion"])
        self.said(number, run, "ended with **success**")
        self.checked(sha)
        return run

    def checked(self, sha: str) -> None:
        """Require the check `review` of a commit, by GitHub Actions."""
        rows = github.api("GET", f"/commits/{sha}/check-runs?check_name=review")["check_runs"]
        found = [(row["conclusion"], row["app"]["id"]) for row in rows]
        require(("success", ACTIONS_ID) in found, f"success by {ACTIONS_ID}", found)

    def merge(self, number: int) -> int:
        """Merge a pull request; return the status."""
        sha = self.pull(number)["head"]["sha"]
        return self.status("PUT", f"/pulls/{number}/merge", {"sha": sha, "merge_method": "merge"})

    def rule(self, file: str) -> str:
        """Import a ruleset without the check of ci.yml; return its address."""
        rules = json.loads(Path(".github", file).read_text("utf-8"))
        for row in rules["rules"]:
            if row["type"] == "required_status_checks":
                checks = row["parameters"]["required_status_checks"]
                checks[:] = [check for check in checks if check["context"] != UNCHECKED]
        return f"/rulesets/{github.api('POST', '/rulesets', rules)['id']}"

    # Steps

    def make(self) -> None:
        """Make the repository, put the files of this commit into it, switch workflows off."""
        body = {"name": self.name, "description": self.marker, "private": True, "auto_init": True}
        made = github.send("POST", "/user/repos", body)
        default = json.loads(made)["default_branch"]
        # The Git database refuses an empty repository: docs.github.com/rest/git, "Git trees".
        start = self.wait(lambda: self.head(default), f"the branch {default}")
        message = f"The files of {git.commit('HEAD')}\n\n[skip ci]"  # starts nothing yet
        commit = {"message": message, "tree": self.upload(), "parents": [start]}
        sha = github.api("POST", "/git/commits", commit)["sha"]
        if default == git.MAIN:
            github.api("PATCH", f"/git/refs/heads/{default}", {"sha": sha, "force": False})
        else:  # as the account's settings name new ones
            github.api("POST", "/git/refs", {"ref": f"refs/heads/{git.MAIN}", "sha": sha})
            github.api("PATCH", "", {"default_branch": git.MAIN})
        self.wait(self.known, "the workflows")
        for file in OFF:
            github.api("PUT", f"/actions/workflows/{file}/disable")
        # A private repository of the Free plan has neither rulesets nor environments.
        self.rulesets = self.status("GET", "/rulesets") == 200
        if not self.rulesets:
            github.api("POST", "/actions/variables", {"name": "ENVIRONMENTS", "value": "none"})

    def upload(self) -> str:
        """Store the files of this commit; return the id of their tree."""
        tree: dict[str, str] = {}  # what is stored already
        rows, size = list[dict[str, str]](), 0
        for row in filter(None, git.run("ls-tree", "-r", "-z", "HEAD").split("\0")):
            (mode, _, sha), path = row.partition("\t")[0].split(), row.partition("\t")[2]
            content = git.git("cat-file", "blob", sha) or b""
            entry = {"path": path, "mode": mode, "type": "blob"}
            try:
                rows.append(entry | {"content": content.decode()})
            except UnicodeDecodeError:
                body = {"content": base64.b64encode(content).decode(), "encoding": "base64"}
                rows.append(entry | {"sha": github.api("POST", "/git/blobs", body)["sha"]})
            size += len(content)
            if size > UPLOAD_BYTES:
                tree = {"base_tree": github.api("POST", "/git/trees", tree | {"tree": rows})["sha"]}
                rows, size = [], 0
        return str(github.api("POST", "/git/trees", tree | {"tree": rows})["sha"])

    def known(self) -> bool:
        """Say whether GitHub knows the workflows that are to be switched off and run."""
        rows = github.api("GET", "/actions/workflows?per_page=100")["workflows"]
        return {*OFF, REVIEW, DEPLOY} <= {row["path"].rpartition("/")[2] for row in rows}

    def main(self) -> None:
        """Let a job of main reproduce, which fills the caches of the reviews."""
        github.api("POST", f"/actions/workflows/{DEPLOY}/dispatches", {"ref": "main"})
        self.ended(self.head("main"), "success", event="workflow_dispatch", file=DEPLOY)
        require(
            github.api("GET", "/actions/caches?ref=refs/heads/main")["total_count"], "caches", 0
        )

    def nothing_changed(self) -> None:
        self.words = self.edit("words", "README.md", lambda text: f"{text}\nA word.\n")
        run = self.ended(self.head("words"), "success")
        (job,) = github.api("GET", f"/actions/runs/{run['id']}/jobs")["jobs"]
        began, end = (datetime.fromisoformat(job[key]) for key in ("started_at", "completed_at"))
        seconds = (end - began).total_seconds()
        require(seconds <= WORK_SECONDS, f"at most {WORK_SECONDS} s of work", seconds)
        self.said(self.words, run, "nothing was reproduced")

    def edited(self) -> None:
        """Open both experiments; the second is merged by path 2."""
        self.one = self.edit("experiment-1", "params.yaml", lambda text: other(text, 30))
        self.two = self.edit("experiment-2", "params.yaml", lambda text: other(text, 40))
        self.second = self.head("experiment-2")
        run = self.ended(self.head("experiment-1"), "failure")  # its dvc.lock is outdated
        self.pressed(self.one, self.committed(self.one, run))

    def rerun(self) -> None:
        run = self.ended(self.head("experiment-1"), "success")
        github.api("POST", f"/actions/runs/{run['id']}/rerun")
        sha, place = run["head_sha"], f"/actions/runs/{run['id']}"
        began = self.run(sha, lambda row: newer(row, run) and row["status"] == "in_progress")
        github.api("POST", f"{place}/cancel")
        stopped = self.run(sha, lambda row: not newer(began, row) and done(row))
        require(stopped["conclusion"] == "cancelled", "cancelled", stopped["conclusion"])
        self.said(self.one, stopped, "ended with **cancelled**")
        green = self.again(stopped)
        require(green["conclusion"] == "success", "success", green["conclusion"])
        self.said(self.one, green, "ended with **success**")
        self.checked(sha)

    def rules(self) -> None:
        if not self.rulesets:
            raise NotPlayed("private repositories of this plan have no rulesets")
        team = self.rule("ruleset.json")
        found = self.merge(self.one)
        require(found == REFUSED, "no merge without another's approval", found)
        github.api("DELETE", team)
        self.rule("ruleset-solo.json")
        found = self.merge(self.two)
        require(found == REFUSED, "no merge before its checks", found)
        found = self.merge(self.one)
        require(found == 200, "a merge by a lone owner", found)

    def updated(self) -> None:
        if not self.pull(self.one)["merged"]:
            found = self.merge(self.one)
            require(found == 200, "a merge", found)
        before = self.head("words")
        body = {"expected_head_sha": before}
        github.api("PUT", f"/pulls/{self.words}/update-branch", body)
        sha = self.wait(
            lambda: next((sha for sha in [self.head("words")] if sha != before), None),
            "an updated branch",
        )
        # By params.yaml and dvc.lock of main, which its new merge base has, too.
        self.said(self.words, self.ended(sha, "success"), "nothing was reproduced")

    def conflict(self) -> None:
        head, main = self.committed(self.two, self.ended(self.second, "failure")), self.head("main")
        found = self.pull(self.two)["mergeable"]
        require(found is False, f"#{self.two} in conflict", found)
        inputs = {"ref": "experiment-2", "inputs": {"params": "this branch"}}
        github.api("POST", f"/actions/workflows/{REVIEW}/dispatches", inputs)
        run = self.ended(head, "success", event="workflow_dispatch")
        made = self.committed(self.two, run)
        parents = [row["sha"] for row in github.api("GET", f"/git/commits/{made}")["parents"]]
        require(parents == [head, main], f"the parents {[head, main]}", parents)
        self.pressed(self.two, made)
        require(self.pull(self.two)["mergeable"], f"#{self.two} without conflict", "a conflict")

    def delete(self) -> None:
        """Delete the repository, if this run made it."""
        found = self.repository()
        if found is None:
            return
        place = f"https://github.com/{github.repository()}"
        mine = found["description"] == self.marker
        require(mine, f"a repository of this run at {place}", found["description"])
        if self.status("DELETE", "") >= 400:
            raise DigitsError(f"{place}: not deleted. Delete it by hand: {place}/settings")
        self.wait(lambda: self.repository() is None, "no repository")

    @property
    def steps(self) -> dict[str, Callable[[], None]]:
        """The steps in their order."""
        paths = [self.nothing_changed, self.edited, self.rerun]
        paths += [self.rules, self.updated, self.conflict]
        played = dict(zip(PATHS, paths, strict=True))
        return {"repository": self.make, "main": self.main, **played, "delete": self.delete}


def done(row: dict[str, Any]) -> bool:
    """Say whether a run has ended."""
    return bool(row["status"] == "completed")


def newer(row: dict[str, Any], run: dict[str, Any]) -> bool:
    """Say whether a run is a later attempt."""
    return bool(row["run_attempt"] > run["run_attempt"])


def other(text: str, value: int) -> str:
    """Return params.yaml with another value of the key that is edited."""
    changed, count = EDIT.subn(rf"\g<1>{value}", text)
    require(count == 1 and changed != text, "one line `mistakes: 60` in params.yaml", count)
    return changed


def explain(error: Exception) -> str:
    """Return the reason of a failure."""
    return str(error) if isinstance(error, DigitsError) else repr(error)


def main(arguments: list[str]) -> None:
    """Verify, and delete what was made for it."""
    parser = argparse.ArgumentParser(prog="verify_github", description=__doc__)
    parser.add_argument("name", help="Of the new repository.")
    parser.add_argument("--yes", action="store_true", help="Do not ask.")
    given = parser.parse_args(arguments)
    if changed := git.changed("."):
        raise DigitsError(f"{changed[0]}: not committed. Commit it: the commit is what is verified")
    print(
        PLAN.format(
            name=given.name,
            commit=(git.commit("HEAD") or "")[:7],
            off=", ".join(OFF),
            paths="; ".join(f"{name} ({text})" for name, text in PATHS.items()),
            not_played="; ".join(f"{name} ({text})" for name, text in NOT_PLAYED.items()),
            minutes=MINUTES,
            scopes=", ".join(sorted(SCOPES)),
        )
    )
    os.environ.setdefault("GITHUB_API_URL", API)
    os.environ["TOKEN"] = github.setting("GITHUB_TOKEN")
    with recorded() as calls:
        user = json.loads(github.send("GET", "/user"))
        scopes = {scope.strip() for scope in (calls.scopes or "").split(",")} - {""}
        missing = ", ".join(sorted(SCOPES - scopes))
        require(not missing, f"a classic token with the scopes {missing}", scopes or "none")
        os.environ["GITHUB_REPOSITORY"] = f"{user['login']}/{given.name}"
        verification = Verification(calls, user["login"], given.name)
        if verification.repository() is not None:
            raise DigitsError(
                f"{github.repository()}: exists. Give a new name: this repository is deleted in "
                "the end. An earlier run has left it if its description says so."
            )
        if not given.yes and input("To go on, type the repository's name: ") != given.name:
            raise DigitsError("Nothing was made. To go on without being asked: --yes")
        rows = verified.play(verification.steps, explain, (Exception,))
    kept = [redacted(call, names=(user["login"],)) for call in calls]
    if not verified.keep("github", rows, kept, NOT_PLAYED):
        raise DigitsError(f"GitHub does not behave as expected. Steps and calls: {verified.OUT}")
    print(f"GitHub behaves as expected. Steps and calls: {verified.OUT}; README says so.")
