"""Draw the charts as SVG: the same file for the same numbers, on white so that it is readable on any page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ratios import BARE, EVENTS, MESSAGE_DB_PY, OURS, Row

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "messagedb_sa"

COLORS = {OURS: "#1f5fa8", BARE: "#b8b8b8", EVENTS: "#e08a2c"}


def ratios(rows: Sequence[Row], path: Path) -> None:
    """A bar chart of speeds, relative to message-db-py."""
    figure = Figure(figsize=(9, 0.62 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    thickness = 0.27
    for row_number, row in enumerate(rows):
        speeds = _speeds(row)
        for number, (name, speed) in enumerate(speeds.items()):
            y = row_number + (number - (len(speeds) - 1) / 2) * thickness
            axes.barh(y, speed - 1, thickness, left=1, color=COLORS[name])
            label = f" {speed:.2f} "
            axes.text(speed, y, label, va="center", ha="left" if speed >= 1 else "right", fontsize=8)
    for name, color in COLORS.items():
        axes.barh(0, 0, color=color, label=name)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.margins(x=0.12, y=0.01)
    axes.set_yticks(range(len(rows)), [row.work for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"times as fast as {MESSAGE_DB_PY} (logarithmic)")
    figure.legend(loc="outside upper center", ncols=len(COLORS), frameon=False)
    _save(figure, axes, path)


def _speeds(row: Row) -> dict[str, float]:
    ours = row.faster.value
    speeds = {OURS: ours}
    if row.slower is not None:
        speeds[BARE] = ours * row.slower.value
    if row.than_events is not None:
        speeds[EVENTS] = ours / row.than_events.value
    return speeds


def growth(seconds: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """A line chart of the time of a call, by the number of messages in the store."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for work, by_size in seconds.items():
        axes.plot(list(by_size), [each * 1e3 for each in by_size.values()], marker="o", label=work)
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = next(iter(seconds.values()))
    axes.set_xticks(list(sizes), [f"{size:,}" for size in sizes])
    axes.set_yticks([0.1, 0.2, 0.5, 1, 2, 5, 10], ["0.1", "0.2", "0.5", "1", "2", "5", "10"])
    axes.minorticks_off()
    axes.set_xlabel("messages in the store (logarithmic)")
    axes.set_ylabel("milliseconds a call (logarithmic)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    _save(figure, axes, path)


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
