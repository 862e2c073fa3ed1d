"""Run git: find the commit to compare with, and read files at that commit.

A comparison needs no checkout and no DVC data: metrics, curves, params.yaml and dvc.lock are in
git.
"""

import subprocess
from dataclasses import dataclass

from core.errors import DigitsError

MAIN = "main"
COMMAND = ("git", "-c", "core.quotePath=false")


@dataclass(frozen=True)
class Base:
    """The commit to compare with."""

    commit: str | None  # None: there is nothing to compare with
    description: str  # how it was found, or why there is none and what to do
    tip: str | None = None  # today's commit of the branch, whose rules judge the change
    unresolvable: bool = False  # a base should exist, so there is no verdict


def run(*arguments: str) -> str:
    """Return what git prints; raise DigitsError with its message when it fails."""
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise DigitsError(f"git {' '.join(arguments[:3])}: {reason}; run from the repository")
    return done.stdout


def git(*arguments: str) -> bytes | None:
    """Return what git prints, None when it ends with an error."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True)
    return done.stdout if done.returncode == 0 else None


def line(*arguments: str) -> str:
    """Return the first line that git prints, empty when it ends with an error."""
    return (git(*arguments) or b"").decode(errors="replace").partition("\n")[0].strip()


def require_root() -> None:
    """Raise DigitsError unless this is the root of a git repository: all paths start there."""
    if below := run("rev-parse", "--show-prefix").strip():
        raise DigitsError(
            f"this is the folder {below} of a git repository; run from the project's root"
        )


def commit(revision: str) -> str | None:
    """Return the id of the commit that a revision names, None when there is none."""
    return line("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") or None


def show(revision: str, path: str) -> bytes | None:
    """Return a file's bytes at a revision, None when it is not there."""
    return git("show", f"{revision}:{path}")


def changed(*paths: str) -> list[str]:
    """Return the files below `paths` that differ from the last commit, new ones too."""
    return [entry[3:] for entry in _names("status", "--porcelain", "--no-renames", "--", *paths)]


def unmerged() -> list[str]:
    """Return the files that a merge left in conflict."""
    return _names("diff", "--name-only", "--diff-filter=U")


def listed(*patterns: str) -> list[str]:
    """Return the files that git knows or would add, by git's patterns."""
    return _names("ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns)


def _names(command: str, *arguments: str) -> list[str]:
    listing = git(command, "-z", *arguments) or b""
    return [name.decode(errors="replace") for name in listing.split(b"\0") if name]


def ignored(*paths: str) -> list[str]:
    """Return those of the paths that a .gitignore excludes, tracked or not."""
    listing = git("check-ignore", "--no-index", "--", *paths) or b""
    return listing.decode(errors="replace").splitlines()


def find_base(revision: str | None) -> Base:
    """Return the merge base of HEAD with `revision`, or else with main.

    On main, it is HEAD if there are uncommitted changes, otherwise the first parent.
    Histories without a common commit are compared by their tips, unless the clone is shallow.
    """
    head = commit("HEAD")
    if head is None or (revision and not revision.strip("0")):
        return Base(None, "nothing is committed yet, so there is nothing to compare with")
    shallow = line("rev-parse", "--is-shallow-repository") == "true"
    deepen = "this clone is shallow and lacks the base; run 'git fetch --unshallow'"
    if not revision:
        branch = line("branch", "--show-current")
        revision = next((name for name in (f"origin/{MAIN}", MAIN) if commit(name)), None)
        if branch == MAIN or not revision or (not branch and commit(revision) == head):
            if changed(".", ":!review"):
                return Base(head, "HEAD, since there are uncommitted changes", head)
            parent = commit("HEAD^")
            if parent is None and shallow:
                return Base(None, deepen, unresolvable=True)
            description = "first parent" if parent else "the first commit has no base"
            return Base(parent, description, parent)
    tip = commit(revision)
    if tip is None:
        fix = deepen if shallow else "run 'git fetch origin' or correct --base"
        return Base(None, f"{revision} is not a commit here; {fix}", unresolvable=True)
    shared = line("merge-base", "HEAD", tip)
    if shared:
        return Base(shared, f"merge base with {revision}", tip)
    if shallow:
        return Base(None, deepen, unresolvable=True)
    return Base(tip, f"{revision} itself: no merge base, the histories share no commit", tip)
