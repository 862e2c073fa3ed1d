"""Write a PNG: `python tests/support/screenshot.py OUT.png [--only SELECTOR] [--file REPORT] ...`.

It opens the page of the `digits local` that runs in this project and draws a three; with --file
an HTML report, or a Markdown report as GitHub would show it. Those of .github/COURSE.md, made in
a project that is reproduced and, for the page, where lab 6 has been done:

    --only '.try' .github/images/page.png
    .github/images/drift.png
    --file data/monitoring/report.html .github/images/report.png
    --file review/report.md .github/images/review.png
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[number]) for number in (1, 2)]  # conftest.py, run.py

from browser import chromium  # noqa: E402
from markdown_it import MarkdownIt  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402

THREE = [(90, 70), (130, 50), (180, 70), (175, 110), (140, 130), (185, 160), (185, 210), (130, 235)]
# GitHub shows pictures; the fonts of a test machine have none.
SIGNS = str.maketrans({"✅": "✔", "❌": "✘", "🟢": "●", "🔴": "●", "⚠": "!"})
STYLE = """<meta charset="utf-8"><style>
  body { font: 14px/1.5 sans-serif; max-width: 60rem; margin: 1rem 2rem; color: #1f2328 }
  table { border-collapse: collapse } th, td { border: 1px solid #d1d9e0; padding: .3rem .8rem }
  tr:nth-child(2n) { background: #f6f8fa }
</style>"""


def draw(page: Page) -> None:
    """Draw a three and wait for the answer to it."""
    page.locator("#pill.good, #pill.alarm").wait_for()
    box = page.locator("#paper").bounding_box() or {"x": 0, "y": 0, "width": 280}
    scale = box["width"] / 280
    for number, (x, y) in enumerate([*THREE, (85, 210)]):
        page.mouse.move(box["x"] + x * scale, box["y"] + y * scale, steps=5)
        if number == 0:
            page.mouse.down()
    page.mouse.up()
    page.locator("#details").wait_for()
    page.wait_for_timeout(1500)  # for the next state


def show(page: Page, file: Path) -> None:
    """Show a report; of HTML what is folded stays so."""
    if file.suffix == ".md":
        text = file.read_text("utf-8").translate(SIGNS)
        page.set_content(STYLE + MarkdownIt("commonmark").enable("table").render(text))
    else:
        page.goto(file.resolve().as_uri())


def main() -> None:
    """Take one picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("out", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(".emulator"), help="of `digits local`")
    parser.add_argument("--file", type=Path, help="a report instead of the page")
    parser.add_argument("--only", default="", help="the part of the page, as a CSS selector")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--phone", action="store_true")
    asked = parser.parse_args()
    size = {"width": 360 if asked.phone else 1280, "height": 800}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        scheme = "dark" if asked.dark else "light"
        page = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
        if asked.file:
            show(page, asked.file)
        else:
            page.goto(json.loads((asked.folder / "address.json").read_text("utf-8"))["page"])
            draw(page)
        if asked.only:
            page.locator(asked.only).screenshot(path=asked.out)
        else:
            page.screenshot(path=asked.out, full_page=True)
        browser.close()
    print(f"{asked.out}: {asked.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
