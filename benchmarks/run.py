"""Run the benchmarks, and write their tables and charts to benchmarks/results."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import budget
import chart
import consumers
import growth
import notify
import page
import ratios
import upstream
from report import progress
from server import server, touch_memory
from sizes import FULL, QUICK

PARTS = ("ratios", "growth", "budget", "notify", "consumers")
RESULTS = Path(__file__).with_name("results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little of everything, in about a minute, elsewhere")
    parser.add_argument("--output", type=Path, help="the folder for the results")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be said again")
    asked = parser.parse_args()
    sizes = QUICK if asked.quick else FULL
    parts = asked.only or PARTS
    reports = {}
    with tempfile.TemporaryDirectory(prefix="message-db-") as folder:
        # First, since it asks for npm.
        official_sql = upstream.fetch(Path(folder)) if "ratios" in parts else None
        output = asked.output or (Path(tempfile.mkdtemp(prefix="messagedb-benchmarks-")) if asked.quick else RESULTS)
        output.mkdir(parents=True, exist_ok=True)
        progress("touching memory")
        touch_memory()
        with server() as url:
            if official_sql is not None:
                rows, reports["ratios"] = ratios.run(url, official_sql, sizes)
                chart.ratios(rows, output / "ratios.svg")
            if "growth" in parts:
                seconds, reports["growth"] = growth.run(url, sizes)
                chart.growth(seconds, output / "growth.svg")
            if "budget" in parts:
                reports["budget"] = budget.run(url, sizes)
            if "notify" in parts:
                reports["notify"] = notify.run(url, sizes)
            if "consumers" in parts:
                reports["consumers"] = consumers.run(url, sizes)
    for name, report in reports.items():
        (output / f"{name}.md").write_text(report, encoding="utf-8")
        print(f"\n{report}")
    if output == RESULTS:
        page.show(reports)
    progress(f"written to {output}")


if __name__ == "__main__":
    main()
