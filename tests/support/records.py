"""What the GitHub on loopback keeps: pull requests, runs of workflows, calls of its API."""

from dataclasses import dataclass, field
from typing import Any

OWNER, NAME = "octo", "digits"
FULL_NAME = f"{OWNER}/{NAME}"


def owner_of(repository: str) -> dict[str, str]:
    """Return who owns OWNER/NAME."""
    return {"login": repository.partition("/")[0]}


@dataclass(frozen=True)
class Call:
    """A call of the API: which job of which workflow made it, and what was answered."""

    workflow: str
    job: str
    method: str
    path: str
    status: int


@dataclass
class Pull:
    """A pull request."""

    number: int
    branch: str
    source: str = FULL_NAME  # a fork has another owner
    author: str = "student"
    base: str = "main"
    state: str = "open"
    created_at: str = "2026-01-01T00:00:00Z"
    body: str = ""
    comments: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Run:
    """A run of a workflow."""

    id: int
    workflow: str
    event: str
    branch: str
    sha: str
    source: str = FULL_NAME
    number: int = 1
    attempt: int = 1
    actor: str = "User"  # or Bot
    login: str = "student"  # of the actor
    status: str = "completed"
    payload: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    log: str = ""

    @property
    def conclusion(self) -> str:
        """What GitHub says of the run as a whole."""
        results = ("cancelled", "failure", "action_required")
        return next((result for result in results if result in self.jobs.values()), "success")

    def facts(self) -> dict[str, Any]:
        """Return the run as the API gives it."""
        return {
            "id": self.id,
            "path": f".github/workflows/{self.workflow}",
            "event": self.event,
            "run_number": self.number,
            "run_attempt": self.attempt,
            "head_branch": self.branch,
            "head_sha": self.sha,
            "head_repository": {"full_name": self.source, "owner": owner_of(self.source)}
            if self.source
            else None,
            "actor": {"type": self.actor, "login": self.login},
            "status": self.status,
            "conclusion": self.conclusion if self.status == "completed" else None,
            "html_url": f"https://github.com/{FULL_NAME}/actions/runs/{self.id}",
        }
