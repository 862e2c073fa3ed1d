"""Download published data sets of foreign digits, and add them to params.yaml and DVC."""

import re
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core import params, wings
from core.errors import DigitsError
from core.files import atomic_write, sha256, write_text

FOLDER = Path("data", "raw")
MOST_BYTES = 1 << 30  # of a download
CHUNK_BYTES = 1 << 20
SECONDS = 60.0  # without an answer


@dataclass(frozen=True)
class Published:
    """A published data set: its address, its citation and its block in params.yaml."""

    url: str  # unverified: not yet downloaded with this command
    file: str
    about: str
    per_class: dict[str, int]
    reader: dict[str, Any]


WRITERS = {"train": ("[1-9]", "[1-7][0-9]", "80"), "test": ("8[1-9]", "9[0-9]", "100")}
NAMINGS = ("*input_{}_*_{{class}}.jpg", "*Locate{{{},*,{{class}}}}.jpg")  # of a copy; original
SETS = {
    "devanagari": Published(
        "https://archive.ics.uci.edu/static/public/389/"
        "devanagari+handwritten+character+dataset.zip",
        "dhcd.zip",
        "Devanagari Handwritten Character Dataset, S. Acharya, A. K. Pant, P. K. Gyawali, 2015, "
        "doi:10.24432/C5XS53, CC BY 4.0",
        {"train": 1000, "test": 200, "production": 200},
        {
            "format": "archive",
            "train": ["*/Train/digit_{class}/*.png"],
            "test": ["*/Test/digit_{class}/*.png"],
            "names": [str(digit) for digit in range(10)],
            "ink": "white",
        },
    ),
    "japanese": Published(
        "https://data.ncl.ac.uk/ndownloader/articles/10280831/versions/1",
        "kanji.zip",
        "Handwritten Chinese Numbers, K. Nazarpour, M. Chen, Newcastle University, 2017, "
        "doi:10.17634/137930-3, CC BY 4.0; 100 writers, of whom 20 test; code 1 is 零, 2 is 一",
        {"train": 600, "test": 200, "production": 200},
        {
            "format": "archive",
            **{
                part: [naming.format(writer) for naming in NAMINGS for writer in writers]
                for part, writers in WRITERS.items()
            },
            "names": [str(code) for code in range(1, 11)],
            "ink": "white",
        },
    ),
}


def fetch(script: str, url: str | None) -> None:
    """Download a set, put its block into params.yaml, and version the file with DVC.

    Raises DigitsError when it cannot be downloaded, or its SHA-256 is not that of the block.
    """
    found = SETS[script]
    values = params.load()
    blocks = values["foreign"] if isinstance(values["foreign"], dict) else {}
    known = blocks.get(script, {}).get("reader", {}).get("sha256")
    path = FOLDER / found.file
    print(f"{found.about}\nFrom {url or found.url + ' (unverified address)'}", flush=True)
    sha256 = download(url or found.url, path, known)
    block = {
        "source": path.as_posix(),
        "per_class": found.per_class,
        "reader": found.reader | {"sha256": sha256},
    }
    write_text(params.PATH, with_block(params.PATH.read_text("utf-8"), script, block))
    print(f"{params.PATH}: foreign.{script} now reads {path}. Cite the data set as above")
    command = ["dvc", "add", path.as_posix()]
    if not wings.installed("dvc"):
        print(f"DVC is not installed here. Run: {' '.join(command)}")
        return
    if subprocess.run([sys.executable, "-m", *command]).returncode:
        raise DigitsError(f"dvc add failed, see above. Fix this, then run: {' '.join(command)}")


def download(url: str, path: Path, known: str | None) -> str:
    """Download an archive; return its SHA-256, which must be `known` unless that is None."""
    total = 0
    try:
        with (
            atomic_write(path) as partial,
            urllib.request.urlopen(url, timeout=SECONDS) as answer,
            partial.open("wb") as file,
        ):
            while chunk := answer.read(CHUNK_BYTES):
                total += len(chunk)
                if total > MOST_BYTES:
                    raise DigitsError(f"{url}: has over {MOST_BYTES:,} bytes. Check the address.")
                file.write(chunk)
            file.flush()
            if (length := answer.headers["Content-Length"]) and int(length) != total:
                raise DigitsError(f"{url}: ended after {total:,} of {length} bytes. Try again.")
            _check(url, partial, found := sha256(partial), known)
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DigitsError(
            f"{url}: cannot be fetched ({reason}). Give another address: --url URL."
        ) from None
    return found


def _check(url: str, path: Path, sha256: str, known: str | None) -> None:
    if known not in (None, sha256):
        raise DigitsError(
            f"{url}: has SHA-256 {sha256}, params.yaml has {known}. If a new version was "
            "published, remove sha256 from the block."
        )
    if not zipfile.is_zipfile(path):
        raise DigitsError(f"{url}: is not a .zip archive. Give another address: --url URL.")
    with zipfile.ZipFile(path) as archive:
        inside = [name for name in archive.namelist() if name.lower().endswith(".7z")]
    if inside:
        raise DigitsError(
            f"{url}: holds {inside[0]}, which needs 7-Zip. Unpack it, pack the pictures into a "
            ".zip, and use --url file:///PATH."
        )


def as_yaml(block: dict[str, Any]) -> str:
    """Return a block as text for params.yaml."""
    return yaml.safe_dump(
        block, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000
    )


def with_block(text: str, script: str, block: dict[str, Any]) -> str:
    """Return params.yaml with the block of a script replaced or added; all else is unchanged."""
    new = "".join(f"  {line}\n" for line in as_yaml({script: block}).splitlines())
    own = re.compile(rf"^  {script}:.*\n(?:    .*\n)*", re.MULTILINE)
    if own.search(text):
        return own.sub(lambda _: new, text, count=1)
    return re.sub(r"^foreign:.*\n", lambda _: f"foreign:\n{new}", text, count=1, flags=re.MULTILINE)
