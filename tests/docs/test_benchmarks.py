"""What make bench writes: that the manual shows it, the README does not contradict it, and it says how sure it is. (No
test depends on what it measures.)"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from itertools import cycle, pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from ..support import REPOSITORY

PAGE = REPOSITORY / "docs" / "explanation" / "performance.md"
METHOD = PAGE.with_name("measuring.md")
FIGURES = PAGE.parent / "figures"
REPORTS = {path: path.read_text("utf-8") for path in FIGURES.glob("*.md")}
RATIOS = REPORTS[FIGURES / "ratios.md"]
STEADY = [0.9, 1.0, 1.1] * 50
UNSTEADY = [0.2, 1.0, 3.0] * 2


@pytest.fixture
def measure() -> Iterator[Any]:
    """The benchmarks' module, which is not part of the package."""
    before = set(sys.modules)
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        yield importlib.import_module("measure")
    finally:
        sys.path.pop(0)
        for name in set(sys.modules) - before:
            if (REPOSITORY / "benchmarks" / f"{name}.py").exists():
                del sys.modules[name]


def test_the_manual_shows_every_report_and_every_chart() -> None:
    text = PAGE.read_text("utf-8")
    assert set(re.findall(r"figures/([\w.]+)", text)) == {path.name for path in FIGURES.iterdir()}
    for chart in FIGURES.glob("*.svg"):
        assert ElementTree.parse(chart).getroot().tag.endswith("svg")


def test_the_manual_says_how_each_figure_was_measured() -> None:
    assert set(re.findall(r"figures/([\w.]+)", METHOD.read_text("utf-8"))) == {path.name for path in REPORTS}
    for path, report in REPORTS.items():
        _, how = report.split("<!-- how -->")
        assert re.search(r"^- \d{4}-\d\d-\d\d, in ", how, re.MULTILINE), path


def test_figures_from_a_busy_machine_say_so() -> None:
    for path, report in REPORTS.items():
        results, how = report.split("<!-- how -->")
        assert ("*Others used the machine" in results) == ("**others used the machine**" in how), path
        assert ("the machine was quiet" in how) != ("**others used the machine**" in how), path


def test_a_row_that_is_steady_is_measured_once(measure: Any) -> None:
    assert rounds(measure, STEADY, repeat_seconds=60) == (len(STEADY), False)


def test_a_row_that_is_not_steady_is_repeated_at_most_twice_and_listed(measure: Any) -> None:
    assert rounds(measure, UNSTEADY, repeat_seconds=60) == (3 * len(UNSTEADY), True)


def test_a_row_is_not_repeated_once_the_time_is_used_up(measure: Any) -> None:
    assert rounds(measure, UNSTEADY, repeat_seconds=0) == (len(UNSTEADY), True)


def rounds(measure: Any, seconds: list[float], repeat_seconds: float) -> tuple[int, bool]:
    """How many rounds were measured, and whether the row is listed as wide, if one of two calls takes these seconds."""
    measure.CALIBRATION.row = "a row"
    measure.CALIBRATION.repeat_seconds = repeat_seconds
    taken = cycle(seconds)
    calls = {"ours": lambda: next(taken), "theirs": lambda: 1.0}
    samples = measure.alternately(calls, len(seconds), first_counts=True)
    measured = len(samples.seconds["ours"])
    assert measure.CALIBRATION.repeated == ["a row"] * (measured // len(seconds) - 1)
    return measured, measure.CALIBRATION.wide == ["a row"]


def test_the_readme_has_three_of_the_figures() -> None:
    shown = re.findall(r"^\| `(.+)` \| ([\d.]+) times \|$", (REPOSITORY / "README.md").read_text("utf-8"), re.MULTILINE)
    assert len(shown) == 3
    for work, times in shown:
        (row,) = re.findall(rf"^\| {re.escape(work)} \|[^|]+\| ([\d.]+) ", RATIOS, re.MULTILINE)
        assert times == f"{float(row):.1f}", work


def test_each_bound_that_is_not_kept_says_so() -> None:
    judged = 0
    for report in REPORTS.values():
        for line in report.splitlines():
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            for measured, bound in pairwise(cells):
                limit = re.search(r"at (least|most) ([\d.]+)", bound)
                if limit is None:
                    continue
                value = float(re.split("[ %]", measured)[0])
                kept = value >= float(limit[2]) if limit[1] == "least" else value <= float(limit[2])
                assert kept == ("falls short" not in bound), line
                judged += 1
    assert judged >= 30
