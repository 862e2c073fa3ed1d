"""`make screenshots`: the pictures of the documentation, made from what they show.

A clone of what is committed trains a worse model, which `digits review` compares and `dvc plots`
draws. Its committed model is then deployed on `digits local`, gets the traffic of params.yaml until
other scripts have come, and reads a drawn digit. Chromium shows the page, the reports and the plots
as they are, on a laptop and on a telephone, in light and in dark colours.
"""

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[number]) for number in (1, 2)]  # conftest.py, run.py

from browser import launched  # noqa: E402
from conftest import NAME, ROOT, Project  # noqa: E402
from light import Emulator  # noqa: E402
from markdown_it import MarkdownIt  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import Browser, Page  # noqa: E402

IMAGES = ROOT / ".github" / "images"
WIDTHS = {"": 1280, "-phone": 360}  # pixels, by the end of a picture's name
SCHEMES = ("light", "dark")
# Pixels of a picture's height, which ends between two parts; the rest of a page is left out.
LONGEST, REPORT_LONGEST, PLOTS_LONGEST = 1340, 1352, 1136
COLORS = 256  # of a picture
WORSE = ("-S", "epochs=1", "-S", "train.peak_learning_rate=0.0003")  # as in lab 4
TRAFFIC = (NAME, "simulate", "--workspace", "local", "--speed", "max")
THREE = [(90, 70), (130, 50), (180, 70), (175, 110), (140, 130), (185, 160), (185, 210), (130, 235)]
# The signs of a report, which GitHub shows in colour and the fonts of a test machine lack.
SIGNS = {
    "✅": '<b class="good box">✔</b>',
    "❌": '<b class="bad">✘</b>',
    "🟢": '<b class="good">●</b>',
    "🔴": '<b class="bad">●</b>',
    "⚠️": '<b class="warn">⚠</b>',
}
STYLE = """<!doctype html><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><style>
  :root { color-scheme: light dark; --ink: #1f2328; --line: #d1d9e0; --row: #f6f8fa; --page: #fff }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #f0f6fc; --line: #3d444d; --row: #151b23; --page: #0d1117 } }
  body { font: 16px/1.5 sans-serif; max-width: 860px; margin: 0 auto; padding: 1px 16px 16px;
    color: var(--ink); background: var(--page) }
  h2 { font-size: 24px; line-height: 1.25; border-bottom: 1px solid var(--line);
    padding-bottom: 8px }
  table { font-size: 15px; display: block; overflow: auto; border-collapse: collapse }
  th, td { border: 1px solid var(--line); padding: 6px 13px; text-align: left }
  tbody tr:nth-child(2n) { background: var(--row) }
  .good { color: #1a9c48 } .bad { color: #e5484d } .warn { color: #bf8700 }
  .box { background: #1a9c48; color: #fff; border-radius: 4px; padding: 0 4px; font-size: .8em }
</style>"""


@dataclass(frozen=True)
class Look:
    """What a page is shown in: the end of the pictures' names, colours and width."""

    name: str
    scheme: str
    width: int


LOOKS = [
    Look(f"{scheme}{end}", scheme, width) for end, width in WIDTHS.items() for scheme in SCHEMES
]
SHOWN = ("review", "report", "page", "drift")  # in every look
PLOTS = "plots-light"  # DVC's page of plots has no other look
NAMES = {PLOTS, *(f"{shown}-{look.name}" for shown in SHOWN for look in LOOKS)}


@contextmanager
def opened(browser: Browser, look: Look) -> Iterator[Page]:
    """Open an empty page in a look."""
    context = browser.new_context(
        viewport={"width": look.width, "height": 800},
        color_scheme=look.scheme,  # type: ignore[arg-type]
        reduced_motion="reduce",
    )
    yield context.new_page()
    context.close()


def save(page: Page, path: Path, part: str = "", longest: int = LONGEST) -> None:
    """Write a page, or the part at a CSS selector, as a PNG of few colours."""
    png = page.locator(part).screenshot() if part else page.screenshot(full_page=True)
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture = picture.crop((0, 0, picture.width, min(picture.height, longest)))
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def show(page: Page, file: Path) -> None:
    """Show an HTML report, or a Markdown report as GitHub would; what is folded stays so."""
    if file.suffix == ".md":
        text = file.read_text("utf-8")
        for sign, shown in SIGNS.items():
            text = text.replace(sign, shown)
        page.set_content(STYLE + MarkdownIt("commonmark").enable("table").render(text))
    else:
        page.goto(file.resolve().as_uri())


def draw(page: Page) -> None:
    """Draw a three and wait for the answer to it."""
    page.locator("#pill.good, #pill.alarm").wait_for()
    page.locator("#paper").scroll_into_view_if_needed()
    box = page.locator("#paper").bounding_box() or {"x": 0, "y": 0, "width": 280}
    scale = box["width"] / 280
    for number, (x, y) in enumerate([*THREE, (85, 210)]):
        page.mouse.move(box["x"] + x * scale, box["y"] + y * scale, steps=5)
        if number == 0:
            page.mouse.down()
    page.mouse.up()
    page.mouse.move(0, 0)
    page.locator("#details").wait_for()


def review(project: Project, work: Path) -> None:
    """Train a worse model on a branch; write its report and its plots."""
    project.git("switch", "--quiet", "--create", "faster")
    project.dvc("exp", "run", "--name", "faster", *WORSE)
    project.git("commit", "--quiet", "--all", "--message", "One epoch is enough")
    project.run(NAME, "review", "--base", "main", "--out", str(work / "review"))
    project.dvc("plots", "diff", "main", "--out", str(work / "plots"))
    project.git("switch", "--quiet", "main")
    project.dvc("checkout", "--quiet")


def produce(project: Project, browser: Browser, out: Path) -> None:
    """Deploy the model and send it traffic until there is drift; take the pictures of the page."""
    emulator = Emulator(project.root / ".emulator", project=project.root, page=True)
    emulator.start()
    try:
        project.run(NAME, "deploy", "apply", "--workspace", "local")
        project.run(*TRAFFIC, "--requests", "3000")
        project.run(*TRAFFIC, "--from", "japanese_too", "--requests", "3000")
        for look in LOOKS:
            with opened(browser, look) as page:
                page.goto(emulator.address["page"])
                draw(page)
                page.locator("#notices .alarm").wait_for()
                save(page, out / f"page-{look.name}.png", ".try")
                save(page, out / f"drift-{look.name}.png")
        project.run(NAME, "deploy", "destroy", "--yes", "--workspace", "local")
    finally:
        emulator.stop()


def make(project: Project, out: Path) -> None:
    """Make all pictures of NAMES in a project that may be changed and whose branch is main."""
    work = project.root / "screenshots"
    review(project, work)
    with launched() as browser:
        files = {"review": work / "review" / "report.md"}
        files["report"] = project.root / "data" / "monitoring" / "report.html"
        for name, file in files.items():
            for look in LOOKS:
                with opened(browser, look) as page:
                    show(page, file)
                    save(page, out / f"{name}-{look.name}.png", "body", REPORT_LONGEST)
        with opened(browser, LOOKS[0]) as page:
            show(page, work / "plots" / "index.html")
            page.locator(".vega-embed canvas").last.wait_for()
            save(page, out / f"{PLOTS}.png", longest=PLOTS_LONGEST)
        produce(project, browser, out)


def clone(target: Path) -> Project:
    """Return a clone of what is committed, with the packages and DVC's cache of this project."""
    project = Project(ROOT).clone(target)
    (target / "node_modules").symlink_to(ROOT / "node_modules")
    (target / ".git" / "info" / "exclude").write_text("node_modules\n.emulator\nscreenshots\n")
    project.git("checkout", "--quiet", "-B", "main")
    project.dvc("config", "--local", "cache.dir", Project(ROOT).dvc("cache", "dir").strip())
    page = Path(".dvc", "vega", "page.html")
    if (ROOT / page).exists():
        shutil.copy(ROOT / page, target / page)
        project.dvc("config", "--local", "plots.html_template", "vega/page.html")
    project.dvc("checkout", "--quiet")
    return project


def main() -> None:
    """Make the pictures in a temporary folder, and then put them into .github/images."""
    argparse.ArgumentParser(prog="make screenshots", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="digits-screenshots-") as folder:
        out = Path(folder, "images")
        out.mkdir()
        make(clone(Path(folder, "clone")), out)
        shutil.rmtree(IMAGES, ignore_errors=True)
        shutil.copytree(out, IMAGES)
    for path in sorted(IMAGES.iterdir()):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
