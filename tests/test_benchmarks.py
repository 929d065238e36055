"""What make bench writes: that it is what the README shows. (What it measures, no test depends on.)"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
REPORTS = ("ratios", "budget", "growth", "notify", "consumers")


@pytest.fixture
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("page", REPOSITORY / "benchmarks" / "page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_shows_the_reports_that_are_in_the_repository(page: ModuleType, tmp_path: Path) -> None:
    shown = (REPOSITORY / "README.md").read_text("utf-8")
    copy = tmp_path / "README.md"
    copy.write_text(shown, encoding="utf-8")
    page.show({name: (RESULTS / f"{name}.md").read_text("utf-8") for name in REPORTS}, copy)
    assert copy.read_text("utf-8") == shown


def test_a_new_report_takes_the_place_of_the_one_before(page: ModuleType, tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    begin, end = "before\n<!-- ratios: written by make bench -->\n", "<!-- end of ratios -->\nafter\n"
    copy.write_text(f"{begin}old\n{end}")
    for report in ("# Ratios\n\nfirst\n", "# Ratios\n\nsecond\n\n## More\n\nwords\n"):
        page.show({"ratios": report}, copy)
    assert copy.read_text() == f"{begin}\nsecond\n\n#### More\n\nwords\n\n{end}"
    with pytest.raises(LookupError, match="no place for growth"):
        page.show({"growth": "# Growth\n"}, copy)


def test_the_charts_are_there() -> None:
    shown = re.findall(r"!\[.+\]\((.+\.svg)\)", (REPOSITORY / "README.md").read_text("utf-8"))
    assert shown == ["benchmarks/results/ratios.svg", "benchmarks/results/growth.svg"]
    for chart in shown:
        assert ElementTree.parse(REPOSITORY / chart).getroot().tag.endswith("svg")


def test_each_bound_that_is_not_kept_says_so() -> None:
    text = (RESULTS / "ratios.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")][2:]
    judged = 0
    for row in rows:
        for measured, bound in ((row[2], row[3]), (row[4], row[5])):
            limit = re.search(r"at (least|most) ([\d.]+)", bound)
            if limit is None:
                continue
            value = float(measured.partition(" ")[0])
            kept = value >= float(limit[2]) if limit[1] == "least" else value <= float(limit[2])
            assert kept == ("falls short" not in bound), row
            judged += 1
    assert judged >= 20
