"""README and the other documents: links lead somewhere, and the file tree is what stands."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import run
import yaml
from browser import a_browser  # noqa: F401
from conftest import NAME, ROOT, Project
from PIL import Image
from playwright.sync_api import Browser

from core import wings

README_LINES = 130
IMAGES = ROOT / ".github" / "images"
IMAGE_BYTES = 500_000
UNLISTED = {"LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "CITATION.cff", "verified.json"}


def tracked() -> list[Path]:
    """Return the files that git tracks or would add."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in names.split("\0") if name and Path(ROOT, name).exists()]


def prose(path: Path) -> str:
    """Return a document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", (ROOT / path).read_text("utf-8"), flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(path), flags=re.M)
    words = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {word.replace(" ", "-") for word in words}


DOCUMENTS = [path for path in tracked() if path.suffix == ".md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"https?://|\.\./\.\./actions/", target):  # the second is a page of GitHub
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.resolve().relative_to(ROOT)), target


def test_each_picture_is_shown_and_small() -> None:
    shown = set[Path]()
    for document in DOCUMENTS:
        folder = (ROOT / document).parent
        text = prose(document)
        found = re.findall(r"(?:\bsrc|srcset)=\"([^\"]+)\"|\]\(([^)\s]+\.png)\)", text)
        shown |= {(folder / (one or other)).resolve() for one, other in found}
        for image in re.findall(r"<img[^>]*>", text):
            assert re.search(r'alt="\w', image), image
    assert shown == set(IMAGES.iterdir())
    assert all(path.stat().st_size < IMAGE_BYTES for path in shown)


@pytest.mark.prove
def test_one_command_makes_all_pictures(browser: Browser, tmp_path: Path) -> None:
    import screenshots  # and the SDK, in seconds

    assert {f"{name}.png" for name in screenshots.NAMES} == {path.name for path in IMAGES.iterdir()}
    report = tmp_path / "report.md"
    report.write_text("## ❌ gate failed\n\n| a | b |\n| --- | --- |\n| 1 | 🔴 |\n", "utf-8")
    for look in screenshots.LOOKS:
        with screenshots.opened(browser, look) as page:
            screenshots.show(page, report)
            assert page.locator("h2 .bad, td .bad").count() == 2
            screenshots.save(page, tmp_path / "page.png", longest=300)
            picture = Image.open(tmp_path / "page.png")
            assert (picture.size, picture.mode) == ((look.width, 300), "P")
            light = sum(picture.convert("RGB").getpixel((0, 299))) > 600  # type: ignore[arg-type]
            assert light == (look.scheme == "light")


def test_readme_is_short_and_links_every_document() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= README_LINES
    for path in DOCUMENTS:
        if path.parts[0] == ".github":
            assert f"]({path.as_posix()})" in text, path


def test_the_file_tree_is_what_stands() -> None:
    text = (ROOT / "README.md").read_text("utf-8").partition("## The files\n")[2]
    listed, parent = set[str](), ""
    for indent, names in re.findall(r"^    ( *)(\S+(?: \S+)*)", text, flags=re.M):
        listed |= {(parent if indent else "") + name for name in names.split()}
        parent = parent if indent else names
    files = tracked()
    top = {path.parts[0] + ("/" if len(path.parts) > 1 else "") for path in files}
    top = {name for name in top if not name.startswith(".") and "lock.json" not in name} - UNLISTED
    top = {name for name in top if not name.startswith("requirements")} - {"src/"}
    packages = {f"src/{path.parts[1]}/" for path in files if path.parts[0] == "src"}
    packages -= {"src/__main__.py/"}
    for wing in ("digits", "mlops"):
        inside = (path.parts for path in files if path.parts[:2] == ("src", wing))
        packages |= {f"src/{wing}/{parts[2]}/" for parts in inside if len(parts) > 3}
    assert listed == top | packages | {".devcontainer/", ".dvc/", ".github/"}


@pytest.mark.prove
def test_the_table_of_experiments_has_ten_columns() -> None:
    (line,) = re.findall(r"^    (dvc exp show .+)$", (ROOT / "README.md").read_text("utf-8"), re.M)
    table = Project(ROOT).run(*shlex.split(line), "--csv").splitlines()[0].split(",")
    assert len(set(table) - {"rev", "typ", "Created", "parent"}) == 10, table


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_commands_and_targets_exist(document: Path) -> None:
    text = (ROOT / document).read_text("utf-8")
    commands = {command.name for command in wings.declared("COMMANDS")}
    assert set(re.findall(rf"(?:^ {{4,}}|`){NAME} ([a-z]+)\b", text, re.M)) <= commands
    assert set(re.findall(r"(?:^ {4,}|`)make ([a-z-]+)\b", text, re.M)) <= set(run.TARGETS)


def test_the_citation_is_complete() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what CFF requires
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert version and citation["version"] == version[1]
