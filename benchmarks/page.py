"""The README's page on speed: the reports, between the marks that say where."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def show(reports: dict[str, str], readme: Path = README) -> None:
    """Put each report in the place of the one that is there."""
    text = readme.read_text(encoding="utf-8")
    for name, report in reports.items():
        begin, end = f"<!-- {name}: written by make bench -->\n", f"<!-- end of {name} -->\n"
        before, found, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found and found_end):
            raise LookupError(f"no place for {name} in {readme}")
        text = f"{before}{begin}\n{_as_part_of_a_page(report)}\n{end}{after}"
    readme.write_text(text, encoding="utf-8")


def _as_part_of_a_page(report: str) -> str:
    """Without its own title, which the page has, and other headings two levels lower."""
    body = report.partition("\n")[2].strip() + "\n"
    return re.sub(r"^##", "####", body, flags=re.MULTILINE)
