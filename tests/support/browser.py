"""A real Chromium: the machine's own Chrome, Chromium or Edge, or the one that is locked."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("google-chrome", "chromium", "chromium-browser", "microsoft-edge", "chrome")
PACKAGE = ROOT / "node_modules" / "@sparticuz" / "chromium"
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
UNPACK = "import('@sparticuz/chromium').then((m) => m.default.executablePath())"


def chromium() -> Path:
    """Return the browser's program; the locked one is unpacked once for each version."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found and not os.environ.get("DIGITS_LOCKED_BROWSER"):
        return Path(found)
    version = json.loads((PACKAGE / "package.json").read_text("utf-8"))["version"]
    home = ROOT / "node_modules" / ".cache" / f"chromium-{version}"
    if not home.exists():
        home.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as folder:
            place = Path(folder, "whole")
            place.mkdir()
            env = os.environ | {"TMPDIR": str(place)}
            subprocess.run(["node", "-e", UNPACK], cwd=ROOT, env=env, check=True, timeout=120)
            place.rename(home)  # complete or absent
    return home / "chromium"


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """Run the browser; it is closed in the end."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox"]  # tests may run as root
        # A proxy that does not answer: nothing on loopback may go through one.
        proxy = dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:1")
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=options, env={**os.environ, **proxy}
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module", name="browser")
def a_browser() -> Iterator[Browser]:
    """A running Chromium."""
    with launched() as browser:
        yield browser


def faults(page: Page) -> list[str]:
    """Return what axe-core finds against the WCAG's rules and its own best practices."""
    page.evaluate(AXE.read_text("utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:120]}" for one in found]
