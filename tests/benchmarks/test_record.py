"""The tables of BENCHMARKS.md and DRIFT.md are those that the benchmarks wrote."""

import json
from pathlib import Path

import pytest

from benchmarks import record
from benchmarks.record import Goal
from digits.production.scoring import cores


def test_the_pages_have_the_tables_of_the_results() -> None:
    results = json.loads(record.RESULTS.read_text("utf-8"))
    texts = [path.read_text("utf-8") for path in record.PAGES]
    assert [record.page(text, results) for text in texts] == texts
    assert all(f"<!-- {name} -->\n" in "".join(texts) for name in results)


def test_a_result_is_kept_and_its_tables_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results.json")
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    monkeypatch.setattr(record, "PAGES", (page, other))
    monkeypatch.setattr(record, "ROOT", tmp_path)
    before = "Before\n\n<!-- one -->\nold\n<!-- end of one -->\n\nAfter\n"
    page.write_text(before, "utf-8")
    other.write_text("Of another benchmark\n", "utf-8")
    goals = [Goal("ratio", 0.5, "at most", 0.55), Goal("rate", 1234.5, "at least", 2000)]
    record.finish(
        "one", [["name", "seconds"], ["first", "1.0 s"]], goals, "medians of 3", record=True
    )
    assert other.read_text("utf-8") == "Of another benchmark\n"
    text = page.read_text("utf-8")
    assert text.startswith("Before\n\n<!-- one -->\n") and text.endswith("one -->\n\nAfter\n")
    assert f"{record.processor()}; commit " in text and "; medians of 3.\n" in text
    assert "| name | seconds |\n| --- | --- |\n| first | 1.0 s |\n" in text
    assert "| ratio | 0.50 | at most 0.55 | reached |\n" in text
    assert "| rate | 1,234.50 | at least 2,000 | missed |\n" in text
    assert "old" not in text


def test_the_processor_is_named_with_its_cores() -> None:
    assert record.processor().endswith(f"{cores()} cores")
