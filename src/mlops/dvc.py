"""Run DVC's commands, parse their output, and reject files that could mislead DVC."""

import functools
import hashlib
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from core.errors import DigitsError

EVENTS = {
    re.compile(r"Running stage '(.+)':\s*"): "ran",
    re.compile(r"Stage '(.+)' is cached - skipping run, checking out outputs\s*"): "restored",
    re.compile(r"Stage '(.+)' didn't change, skipping\s*"): "unchanged",
}
LAST_LINES = 30
CACHE = Path(".dvc", "cache", "files", "md5")
CHECKED = Path(".dvc", "tmp", "checked")  # its time is that of the last check of CACHE
MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
# What DVC 3 writes about a file or folder: in dvc.lock, and in a *.dvc file.
LOCK_KEYS = {"md5", "hash", "size", "nfiles", "isexec", "path"}
OUT_KEYS = {*LOCK_KEYS, "desc", "type", "labels", "meta"}
VARIABLE = "AZURE_STORAGE_CONNECTION_STRING"  # DVC accepts it there, too
PROBE_SECONDS = 4  # to reach a blob store, and again for its answer: less than 10 in all
COMMAND = (sys.executable, "-m", "dvc")  # the DVC that is installed beside this Python
ABSENT = {"deleted", "not in cache"}  # in the words of `dvc status`


@dataclass
class Run:
    """The result of `dvc repro`."""

    stages: dict[str, tuple[str, float]] = field(default_factory=dict)  # what happened, seconds
    failed: str = ""  # the stage, or "the pipeline"; empty when all went well
    last_lines: list[str] = field(default_factory=list)


def environment() -> dict[str, str]:
    """Return an environment in which stages find this Python, or the one in STAGE_PATH."""
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", "")
    return os.environ | {"PATH": os.environ.get("STAGE_PATH") or path}


def run(
    *arguments: str,
    folder: Path | None = None,
    fix: str = "run this again",
    seconds: float | None = None,
    **env: str,
) -> str:
    """Run DVC in a folder; return its standard output.

    Waits for another DVC that holds the lock; asks a remote for an answer before a transfer. Raises
    DigitsError with DVC's own error and `fix` when it fails or exceeds `seconds`.
    """
    if arguments[0] in ("fetch", "pull", "push"):
        refuse_files(folder)
        probe(arguments[arguments.index("--remote") + 1], folder)
    try:
        done = subprocess.run(
            [*COMMAND, "--wait-for-lock", *arguments],
            cwd=folder,
            env=environment() | env,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise DigitsError(f"dvc {arguments[0]}: no answer within {seconds:g} s; {fix}") from None
    if done.returncode:
        _, _, error = done.stderr.partition("ERROR: ")
        error = error.partition("Traceback (most recent call last)")[0]
        if error.startswith("configuration error"):
            fix = "correct .dvc/config or .dvc/config.local"
        reason = " ".join((error or done.stderr or done.stdout).split())[:500]
        raise DigitsError(f"dvc {arguments[0]}: {reason or done.returncode}; {fix}")
    return done.stdout


def probe(remote: str, folder: Path | None = None) -> str | None:
    """Wait for an answer of a remote; return its storage account, None if it has none.

    Any answer is sufficient, even an error. Raises DigitsError within 10 s without one; DVC itself
    would retry for minutes.
    """
    rows = run("config", "--list", folder=folder)
    settings = dict(re.findall(rf"^remote\.{re.escape(remote)}\.(\w+)=(.*)$", rows, re.M))
    text = settings.get("connection_string") or os.environ.get(VARIABLE, "")
    string = dict(row.partition("=")[::2] for row in text.split(";"))
    account = string.get("AccountName") or settings.get("account_name")
    address = string.get("BlobEndpoint") or f"https://{account}.blob.core.windows.net"
    if not settings.get("url", "").startswith("azure:") or not account:
        return None
    try:
        urllib.request.urlopen(address, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # for instance a company's certificates
            raise DigitsError(
                f"remote {remote}: no answer from {address} ({reason}). Check the network and the "
                "name of the account; for local storage: make storage"
            ) from None
    return account


@functools.cache
def cache_of(folder: Path) -> str:
    """Return the folder of DVC's cache for the project in a folder."""
    return run("cache", "dir", folder=folder).strip()


def stages(lock: str | bytes) -> dict[str, Any]:
    """Return the stages of a dvc.lock, none of an empty one; raise DigitsError if it is invalid."""
    try:
        known = YAML(typ="safe").load(lock) or {"stages": {}}
        return {name: dict(stage) for name, stage in known["stages"].items()}
    except (YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DigitsError(f"dvc.lock: invalid ({reason}); `git checkout dvc.lock`") from None


def refused_files(names: list[str]) -> list[str]:
    """Return the errors of *.dvc files and dvc.lock: each entry may only be a path and its MD5.

    DVC accepts in them `files` with any `relpath` (dvc/stage/loader.py), and MD5s of DVC 2, whose
    listings `check_cache` does not see (dvc/output.py); in *.dvc files also `wdir`, `deps` and
    paths of other folders (dvc/schema.py, SINGLE_STAGE_SCHEMA). A checkout of data could so replace
    source files. A *.dvc file may only name one file or folder next to it.
    """
    found = []
    for name in names:
        known, command = (LOCK_KEYS, "repro") if name.endswith(".lock") else (OUT_KEYS, "add")
        try:
            text = Path(name).read_text("utf-8")
            if command == "repro":
                outs = [out for stage in stages(text).values() for out in stage.get("outs", [])]
            else:
                values = YAML(typ="safe").load(text)
                (out,) = outs = values["outs"]
                place = re.search(r"^\.{0,2}$|[/\\:\0]", out["path"])
                if place or not set(values) <= {"outs", "meta", "desc"}:
                    raise ValueError("it has more than the one file or folder beside it")
                if Path(name).is_symlink() or Path(name).with_name(out["path"]).is_symlink():
                    raise ValueError("it is or names a symbolic link")
            for out in outs:
                if not set(out) <= known or out["hash"] != "md5" or not MD5.fullmatch(out["md5"]):
                    raise ValueError(f"{out['path']!r:.80} has more than the MD5 of DVC 3")
        except FileNotFoundError:  # deleted in the working tree
            continue
        except Exception as error:  # whatever hostile YAML raises
            reason = " ".join(str(error).split())[:200]
            found.append(f"{name}: {reason}; write it with 'dvc {command}'")
    return found


def refuse_files(folder: Path | None = None) -> None:
    """Raise DigitsError for data's files *.dvc or a dvc.lock that lead DVC out of its folders."""
    names = map(str, (folder or Path()).glob("data/**/*.dvc"))
    if refused := refused_files([*sorted(names), str((folder or Path()) / "dvc.lock")]):
        raise DigitsError("; ".join(refused))


def drop_false_objects() -> None:
    """Delete files of this clone's DVC cache whose content does not match their name.

    Only files that changed since the last check are read. A cache elsewhere (`cache.dir`) is
    skipped: no workflow restored it, and it may be huge.
    """
    if not CACHE.exists():
        return
    CHECKED.parent.mkdir(exist_ok=True)
    began = CHECKED.with_suffix(f".{os.getpid()}")  # another command may be checking
    began.write_bytes(b"")  # now, by the clock of the file system
    last = CHECKED.stat().st_mtime_ns if CHECKED.exists() else 0
    if last > began.stat().st_mtime_ns:  # the clock was set back
        last = 0
    for path in CACHE.glob("*/*"):
        times = path.stat()
        if max(times.st_mtime_ns, times.st_ctime_ns) < last:
            continue
        name = path.parent.name + path.name
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if MD5.fullmatch(name) and digest != name.removesuffix(".dir"):  # others are unfinished
            print(f"{path}: its content has the hash {digest}; deleted")
            path.unlink()
    began.replace(CHECKED)


def check_cache(folder: Path | None = None, cache: str = "") -> None:
    """Raise DigitsError for files *.dvc or listings in the cache that lead out of their folder.

    DVC 3.67.1 follows `relpath: ../../../src/x.py` when it checks out a folder, and does not
    verify cached files, so call this before each checkout of a project (in `folder`, by default
    here), wherever its cache is (DVC is asked unless `cache` is given).
    """
    refuse_files(folder)
    drop_false_objects()
    cache = cache or cache_of(folder or Path.cwd())
    for path in sorted(Path(cache, "files", "md5").glob("*/*.dir")):
        content = path.read_bytes()
        try:
            rows: list[dict[str, Any]] = json.loads(content)
            for row in rows:
                place = row["relpath"]
                if {"", ".", ".."} & set(place.split("/")) or re.search(r"[\\:\0]", place):
                    raise ValueError(f"{place!r:.80} is not below the folder")
                if not MD5.fullmatch(row["md5"]):
                    raise ValueError(f"{row['md5']!r:.80} is no MD5")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DigitsError(
                f"{path}: not a listing of a folder ({error}). Nothing is checked out; delete "
                "this file and fetch from a remote that you trust"
            ) from None


def checkout(*options: str, folder: Path | None = None, fix: str = "run this again") -> None:
    """Run `dvc checkout`; raises DigitsError as `run` and `check_cache` do."""
    check_cache(folder)
    run("checkout", *options, folder=folder, fix=fix)


def restore(remote: str, *targets: str, run_cache: bool = False) -> str:
    """Fetch the files named in dvc.lock and *.dvc files, verify them, and check them out.

    Without a remote only files in the cache are verified and checked out. Returns why something is
    missing, or an empty string. The environment variable BLOB_SECONDS limits the time, since
    Azure's SDK has no limit. The run cache, which cannot be verified, is fetched only
    if `run_cache`. Raises DigitsError for files that lead DVC out of their folder.
    """
    seconds, problem = float(os.environ.get("BLOB_SECONDS", "300")), ""
    options = ["--quiet", "--remote", remote, *(["--run-cache"] if run_cache else []), *targets]
    try:
        if remote:
            run("fetch", *options, seconds=seconds)
    except DigitsError as error:
        problem = str(error)
    check_cache()
    try:
        run("checkout", *targets)  # checks out what is in the cache; fails for the rest
    except DigitsError as error:
        problem = problem or str(error)
    return problem


def repro(*options: str) -> Run:
    """Run `dvc repro`, printing what it prints; raises DigitsError as `check_cache` does."""
    check_cache()
    run, last = Run(), deque[str](maxlen=LAST_LINES)
    starts: list[tuple[str, str, float]] = []  # stage, what happens to it, since when
    process = subprocess.Popen(
        [*COMMAND, "repro", *options],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            last.append(line.rstrip())
            found = [(match[1], kind) for e, kind in EVENTS.items() if (match := e.fullmatch(line))]
            starts += [(name, kind, time.monotonic()) for name, kind in found]
    except KeyboardInterrupt:  # DVC and its stage receive it, too, and undo their changes
        print(process.stdout.read(), end="")
        raise
    finally:
        process.wait()
        process.stdout.close()
    ends = [*(since for _, _, since in starts[1:]), time.monotonic()]
    for (name, what, since), end in zip(starts, ends, strict=False):
        run.stages[name] = (what, end - since)
    if process.returncode:
        stage_name = re.search(r"failed to reproduce '([^'\n]+)'", "\n".join(last))
        run.failed = f"stage {stage_name[1]}" if stage_name else "the pipeline"
        run.last_lines = [line for line in last if line.strip()]
    return run


def status(cached: set[str]) -> tuple[list[str], list[str]]:
    """Return what makes dvc.lock stale, and which of its files are missing or differ here.

    `cached` are the outputs that DVC keeps. If such an output, or a folder that contains one, has
    another version here, dvc.lock is not stale.
    """
    kept = {*cached, *(str(folder) for path in cached for folder in PurePosixPath(path).parents)}
    try:
        status = json.loads(run("status", "--json"))
    except (DigitsError, ValueError) as error:
        return [f"'dvc status' failed: {error}"], []
    stale: list[str] = []
    missing: list[str] = []
    for stage, entries in status.items():
        for entry in entries:
            if not isinstance(entry, dict):
                stale.append(stage)  # "changed command"
                continue
            for kind in ("changed deps", "changed outs"):
                changed = entry.get(kind) or {}
                other = [p for p, how in changed.items() if str(how) in ABSENT or p in kept]
                missing += other  # params are listed elsewhere
                stale += [stage] if len(other) < len(changed) else []
    names, files = ", ".join(dict.fromkeys(stale)), list(dict.fromkeys(missing))
    few = ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
    fix = "run 'dvc repro', then commit dvc.lock and data"
    wrong = f"dvc.lock is outdated ({names}): {fix}"
    lacking = f"missing or of another version here: {few}; run 'dvc pull', or 'dvc repro'"
    return [wrong] if stale else [], [lacking] if missing else []
