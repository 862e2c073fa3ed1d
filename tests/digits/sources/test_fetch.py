"""`digits data fetch`: published sets from a served copy; what is served otherwise is refused."""

import hashlib
import http.server
import io
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from core import params, wings
from core.errors import DigitsError
from digits.sources import fetch
from mlops.cli import call

Serve = Callable[[bytes, int | None], str]


def packed(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"picture")
    return out.getvalue()


GOOD = packed("Set/Train/digit_0/1.png")


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve bytes on loopback, with a length that may not be theirs."""
    servers = []

    def start(body: bytes, length: int | None = None) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the library's name
                self.send_response(200)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/set.zip"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A project's folder to work in; the commands that were run instead of DVC."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    commands: list[list[str]] = []

    def run(command: list[str]) -> SimpleNamespace:
        commands.append(command[1:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_a_set_is_fetched_named_and_versioned(
    serve: Serve, ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = params.PATH.read_text("utf-8")
    call("data", "fetch", "devanagari", "--url", serve(GOOD, None))
    assert "doi:10.24432/C5XS53, CC BY 4.0" in capsys.readouterr().out
    assert Path("data/raw/dhcd.zip").read_bytes() == GOOD
    assert ran == [["-m", "dvc", "add", "data/raw/dhcd.zip"]]
    values = params.load()
    own = values["foreign"]["devanagari"]
    assert own["reader"] == fetch.SETS["devanagari"].reader | {
        "sha256": hashlib.sha256(GOOD).hexdigest()
    }
    assert list(values["foreign"]) == ["devanagari", "japanese"]
    assert params.foreign_scripts(values) == {"devanagari": False, "japanese": True}
    after = params.PATH.read_text("utf-8")
    assert before[before.index("  japanese:") :] == after[after.index("  japanese:") :]
    call("data", "fetch", "devanagari", "--url", serve(GOOD, None))
    assert params.PATH.read_text("utf-8") == after
    with pytest.raises(DigitsError, match=r"has SHA-256 .*, params\.yaml has "):
        call("data", "fetch", "devanagari", "--url", serve(packed("other"), None))
    assert Path("data/raw/dhcd.zip").read_bytes() == GOOD


def test_a_script_that_is_not_there_is_added(serve: Serve, ran: list[list[str]]) -> None:
    text = params.PATH.read_text("utf-8")
    head, tail = text[: text.index("foreign:\n")], text[text.index("prepare:\n") :]
    params.PATH.write_text(f"{head}foreign: []\n\n{tail}", "utf-8")
    call("data", "fetch", "japanese", "--url", serve(GOOD, None))
    assert params.foreign_scripts(params.load()) == {"japanese": False}


def test_without_dvc_the_command_is_printed(
    serve: Serve,
    ran: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    installed = wings.installed
    monkeypatch.setattr(wings, "installed", lambda name: name != "dvc" and installed(name))
    fetch.fetch("japanese", serve(GOOD, None))
    assert capsys.readouterr().out.endswith("Run: dvc add data/raw/kanji.zip\n")
    assert ran == []


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"<html>Sign in</html>", None, r"is not a \.zip archive"),
        (packed("Raw Dataset.7z"), None, "holds Raw Dataset.7z, which needs 7-Zip"),
        (GOOD[:-9], len(GOOD), "ended after|cannot be fetched"),
    ],
    ids=["a page", "7z", "cut short"],
)
def test_what_is_no_set_changes_nothing(
    serve: Serve, ran: list[list[str]], body: bytes, length: int | None, message: str
) -> None:
    before = params.PATH.read_bytes()
    with pytest.raises(DigitsError, match=message):
        fetch.fetch("japanese", serve(body, length))
    assert params.PATH.read_bytes() == before
    assert list(fetch.FOLDER.iterdir()) == []


def test_the_published_address_is_marked_unverified(
    ran: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until somebody has run it; no test reaches beyond this machine."""
    asked: list[str] = []

    def download(url: str, path: Path, known: str | None) -> str:
        asked.append(url)
        return "0" * 64

    monkeypatch.setattr(fetch, "download", download)
    fetch.fetch("japanese", None)
    assert asked == [fetch.SETS["japanese"].url]
    assert f"From {asked[0]} (unverified address)\n" in capsys.readouterr().out


def test_a_server_that_is_gone_is_named(serve: Serve, ran: list[list[str]]) -> None:
    with pytest.raises(DigitsError, match=r"cannot be fetched .* --url URL"):
        fetch.fetch("japanese", "http://127.0.0.1:1/set.zip")
