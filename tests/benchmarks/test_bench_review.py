"""`make bench-review` on the small project, whose figures mean nothing."""

import re

import pytest
from conftest import ROOT, Project
from loopback import needs_bash


@needs_bash
@pytest.mark.prove(minutes=1.5)
def test_a_readme_and_a_param_are_timed(project: Project) -> None:
    command = ("python", str(ROOT / "tests/benchmarks"), "bench_review")
    said = project.run(*command, "--change", "README", "--change", "evaluate")
    assert re.search(r"^README +\d+ +\d+ +-?\d+$", said, re.M), said
    assert re.search(r"^evaluate +\d+ +\d+ +-?\d+$", said, re.M), said
    assert re.search(r"^more seconds: evaluate +\S+ +at most 90 +(reached|missed)$", said, re.M)
