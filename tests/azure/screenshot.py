"""Write a PNG of a running page: `python tests/azure/screenshot.py OUT.png [--dark] [--phone]`.

It opens the page of the `digits serve` that runs in this project, draws a three, and waits.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[number]) for number in (1, 2)]  # conftest.py, run.py

from browser import chromium  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

THREE = [(90, 70), (130, 50), (180, 70), (175, 110), (140, 130), (185, 160), (185, 210), (130, 235)]


def main() -> None:
    """Take one picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(".standin"), help="of `digits serve`")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--phone", action="store_true")
    asked = parser.parse_args()
    url = json.loads((asked.folder / "address.json").read_text("utf-8"))["page"]
    size = {"width": 360 if asked.phone else 1280, "height": 800}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        scheme = "dark" if asked.dark else "light"
        page = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(url)
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
        page.screenshot(path=asked.out, full_page=True)
        browser.close()
    print(f"{asked.out}: {asked.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
