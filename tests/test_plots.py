"""`dvc plots` without a network: every plot of dvc.yaml is drawn, with named axes and its lines."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import launched
from conftest import ROOT, Project, copy_tracked

PAGE = ROOT / ".dvc" / "vega" / "page.html"
TABLES = ("data/model/curves.csv", "data/evaluation/per_class.csv", "data/monitoring/windows.csv")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PAGE.exists(), reason="`make env` could not install Vega"),
]


def definitions() -> list[dict[str, Any]]:
    """Return the plots of dvc.yaml, those of stages included, but for folders of images."""
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))
    stages = (stage.get("plots", []) for stage in pipeline["stages"].values())
    found = [*pipeline["plots"], *(plot for plots in stages for plot in plots)]
    return [next(iter(plot.values())) for plot in found if isinstance(plot, dict)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that DVC writes for two revisions."""
    project = Project(tmp_path_factory.mktemp("plots") / "project")
    copy_tracked(project.root)
    project.git("init", "--quiet", "--initial-branch", "main")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "Tables")
    for name in TABLES:  # a row less is another result
        lines = (project.root / name).read_text("utf-8").splitlines(keepends=True)
        (project.root / name).write_text("".join(lines[:-1]), "utf-8", newline="\n")
    shutil.copy(PAGE, project.root / PAGE.relative_to(ROOT))
    project.dvc("config", "--local", "plots.html_template", "vega/page.html")
    project.dvc("plots", "diff", "HEAD", "--out", "plots")
    return project.root / "plots" / "index.html"


def test_every_plot_is_drawn_without_a_network(written: Path) -> None:
    count = len(definitions())
    with launched() as browser:
        page = browser.new_context(offline=True).new_page()
        page.add_init_script(
            "window.failures = []; onerror = (text) => failures.push(text);"
            "onunhandledrejection = (event) => failures.push(String(event.reason))"
        )
        page.goto(written.as_uri())
        drawn = "document.querySelectorAll('.vega-embed canvas').length"
        page.wait_for_function(f"{drawn} + failures.length >= {count}")
        assert page.evaluate("failures") == []
        assert page.evaluate(drawn) == count
        assert page.locator(".vega-bind").count() == 0  # no slider that smooths
        for picture in page.locator("img").all():  # the revisions stand side by side
            box = picture.bounding_box()
            assert box and box["x"] + box["width"] <= page.evaluate("innerWidth")


def test_every_plot_has_a_title_and_names_its_axes(written: Path) -> None:
    for plot in definitions():
        assert {"title", "x_label", "y_label"} <= plot.keys(), plot
    text = written.read_text("utf-8")
    assert '"Window of 500 requests"' in text and '"Evidence, with the alarm at 1000"' in text


def test_a_revision_has_one_color_in_all_plots(written: Path) -> None:
    scale = '{"domain": ["workspace", "HEAD"], "range": ["#945dd6", "#13adc7"]}'
    text = written.read_text("utf-8")
    assert text.count(f'"color": {{"field": "rev", "scale": {scale}}}') == len(definitions())


def test_the_limit_of_the_alarm_and_the_diagonals_are_dashed(written: Path) -> None:
    assert written.read_text("utf-8").count('"strokeDash": [6, 4]') == 3
