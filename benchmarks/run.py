"""Run the benchmarks, and write their tables and charts into the manual."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import asynchronous
import budget
import bulk
import chart
import consumers
import entities
import groups
import growth
import joined
import notify
import positions
import ratios
import typed
import upstream
from calibration import CALIBRATION
from report import finished, progress
from server import server, touch_memory
from sizes import FULL, QUICK, Sizes

RATIOS, GROWTH = "ratios", "growth"
PARTS: dict[str, Callable[[str, Sizes], str]] = {
    "budget": budget.run,
    "joined": joined.run,
    "bulk": bulk.run,
    "groups": groups.run,
    "notify": notify.run,
    "consumers": consumers.run,
    "positions": positions.run,
    "entities": entities.run,
    "typed": typed.run,
    "async": asynchronous.run,
}
"""What has a report, but no chart."""

RESULTS = Path(__file__).parents[1] / "docs" / "explanation" / "figures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="run a small part of everything in about a minute, into a temporary folder"
    )
    parser.add_argument("--output", type=Path, help="the folder for the results")
    parser.add_argument(
        "--only", choices=(RATIOS, GROWTH, *PARTS), action="append", help="run only this part; may be repeated"
    )
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    CALIBRATION.repeat_seconds = sizes.repeat_seconds
    parts = options.only or (RATIOS, GROWTH, *PARTS)
    with tempfile.TemporaryDirectory(prefix="message-db-") as folder:
        # First, so that a missing npm is reported immediately.
        official_sql = upstream.fetch(Path(folder)) if RATIOS in parts else Path()
        quick_output = Path(tempfile.mkdtemp(prefix="messagedb-benchmarks-")) if options.quick else None
        output = options.output or quick_output or RESULTS
        output.mkdir(parents=True, exist_ok=True)

        def ratios_with_chart(url: str, sizes: Sizes) -> str:
            rows, report = ratios.run(url, official_sql, sizes)
            chart.ratios(rows, output / "ratios.svg")
            return report

        def growth_with_chart(url: str, sizes: Sizes) -> str:
            seconds, report = growth.run(url, sizes)
            chart.growth(seconds, output / "growth.svg")
            return report

        if not options.quick:
            progress("using memory once, so that the host provides it")
            touch_memory()
        with server() as url:
            for name, run in {RATIOS: ratios_with_chart, GROWTH: growth_with_chart, **PARTS}.items():
                if name not in parts:
                    continue
                began = time.monotonic()
                CALIBRATION.begin_part(url)
                report = finished(run(url, sizes), url, time.monotonic() - began)
                (output / f"{name}.md").write_text(report, encoding="utf-8")
                print(f"\n{report}")
            CALIBRATION.end()
    progress(f"written to {output}")


if __name__ == "__main__":
    main()
