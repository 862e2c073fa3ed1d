"""A real Chromium: the machine's own Chrome, Chromium or Edge, or the one that is locked."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from conftest import ROOT

NAMES = ("google-chrome", "chromium", "chromium-browser", "microsoft-edge", "chrome")
PACKAGE = ROOT / "node_modules" / "@sparticuz" / "chromium"
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
