"""Charts, as numbers: what goes where in an SVG whose size a template decides. Colours are classes of a style sheet."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, Protocol

MINUTES = 60
"""How many minutes a chart of messages has."""
COLOURS = 7
"""How many series have a colour of their own."""
OTHERS = "all others"

_MINUTE = timedelta(minutes=1)
_STEPS = (1, 2, 5)
_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18_000, 43_200, 86_400)


class Counted(Protocol):
    """How many messages a minute had of a category and a type, as ``Store.activity`` returns them."""

    @property
    def minute(self) -> datetime: ...
    @property
    def category(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def messages(self) -> int: ...


class Series(NamedTuple):
    """``style`` is the class with its colour, ``value`` the sum of the bars, or the last value of the line."""

    name: str
    style: str
    value: float | None


class Bar(NamedTuple):
    style: str
    y: float
    height: float


class Minute(NamedTuple):
    """``counts`` are in the order of the series, ``present`` has those that are not 0, with their names."""

    time: datetime
    x: int
    counts: list[int]
    present: list[tuple[str, int]]
    bars: list[Bar]


class BarChart(NamedTuple):
    """Stacked bars in a box of MINUTES by 100. ``top`` is the number of messages at its upper edge.

    The first ``uncounted`` minutes are not known, since only so many messages were looked at.
    """

    minutes: list[Minute]
    series: list[Series]
    top: int
    uncounted: int


class Line(NamedTuple):
    """``points`` are the attribute of a polyline; a line with gaps has several."""

    style: str
    points: list[str]


class LineChart(NamedTuple):
    """Lines in a box of 1000 by 100. ``is_cut``: the values at the upper edge may be greater."""

    begin: datetime
    end: datetime
    series: list[Series]
    lines: list[Line]
    top: float
    is_cut: bool
    left_out: int


def messages_a_minute(
    activity: Sequence[Counted], by: Literal["category", "type"], no_of_messages: int
) -> BarChart | None:
    """The hour up to the last message. ``no_of_messages`` is how many were looked at. None without any."""
    if not activity:
        return None
    last = max(each.minute for each in activity)
    first = last - (MINUTES - 1) * _MINUTE
    by_minute: defaultdict[datetime, Counter[str]] = defaultdict(Counter)
    totals: Counter[str] = Counter()
    for each in activity:
        if each.minute >= first:
            name = each.category if by == "category" else each.type
            by_minute[each.minute][name] += each.messages
            totals[name] += each.messages
    uncounted = 0
    oldest = min(each.minute for each in activity)
    if sum(each.messages for each in activity) >= no_of_messages and oldest >= first and oldest < last:
        # Of the oldest minute, some messages were perhaps not looked at.
        uncounted = (oldest - first) // _MINUTE + 1
        totals -= by_minute.pop(oldest)
    names = [name for name, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0]))]
    own, others = names[:COLOURS], set(names[COLOURS:])
    series = [Series(name, f"s{number}", totals[name]) for number, name in enumerate(own)]
    if others:
        series.append(Series(OTHERS, "others", sum(totals[name] for name in others)))
    top = nice(max((each.total() for each in by_minute.values()), default=1))
    minutes = []
    for x in range(MINUTES):
        time = first + x * _MINUTE
        counts = [by_minute[time][name] for name in own]
        if others:
            counts.append(sum(count for name, count in by_minute[time].items() if name in others))
        present, bars, y = [], [], 100.0
        for one, count in zip(series, counts, strict=True):
            if count:
                height = 100 * count / top
                y -= height
                present.append((one.name, count))
                bars.append(Bar(one.style, round(y, 2), round(height, 2)))
        minutes.append(Minute(time, x, counts, present, bars))
    return BarChart(minutes, series, top, uncounted)


class Sample(NamedTuple):
    """The values of one moment, by name. None: more than what is counted."""

    time: datetime
    values: Mapping[str, float | None]


def over_time(
    samples: Sequence[Sample], longest_pause: timedelta, *, most: float | None = None, seconds: bool = False
) -> LineChart | None:
    """Lines through the samples, with gaps if there was none for so long. Only the series whose last values are highest
    have lines. ``most``: what None counts as. None if there are less than two samples, which make no line."""
    if len(samples) < 2:
        return None
    begin, end = samples[0].time, samples[-1].time
    length = max(end - begin, timedelta(seconds=1))
    latest = {name: value for sample in samples for name, value in sample.values.items()}
    names = sorted(latest, key=lambda name: (-_shown(latest[name], most), name))
    shown = names[:COLOURS]
    values = [_shown(sample.values[name], most) for sample in samples for name in shown if name in sample.values]
    is_cut = any(sample.values.get(name, 0) is None for sample in samples for name in shown)
    highest = max(values, default=0)
    top = highest if is_cut else (nice_seconds(highest) if seconds else float(nice(highest)))
    lines = []
    for number, name in enumerate(shown):
        points: list[list[str]] = []
        before: datetime | None = None
        for time, of in samples:
            if name not in of:
                before = None
                continue
            if before is None or time - before > longest_pause:
                points.append([])
            before = time
            x, y = 1000 * ((time - begin) / length), 100 * (1 - _shown(of[name], most) / top)
            points[-1].append(f"{x:.1f},{y:.2f}")
        # A line of one point has no length.
        lines.append(Line(f"s{number}", [" ".join(each if len(each) > 1 else each * 2) for each in points]))
    series = [Series(name, f"s{number}", latest[name]) for number, name in enumerate(shown)]
    return LineChart(begin, end, series, lines, top, is_cut, len(names) - len(shown))


def nice(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    return next(step * round(10.0**power) for power in range(20) for step in _STEPS if step * 10.0**power >= value)


def nice_seconds(value: float) -> float:
    """The next that is a round number of seconds, minutes, hours or days."""
    return next((each for each in _SECONDS if each >= value), 86_400.0 * nice(value / 86_400))


def duration(seconds: float) -> str:
    """In the largest unit of which it has one at least, such as ``3 min``."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            number = f"{seconds / length:.{0 if seconds >= 10 * length else 1}f}"
            return f"{number.removesuffix('.0')} {unit}"
    return f"{max(seconds, 0):.0f} s"


def since(time: datetime | None, now: datetime) -> float:
    """Seconds since then; 0 for None, and if the clocks of two machines differ."""
    if time is None:
        return 0.0
    return max(0.0, (now - time).total_seconds())


def _shown(value: float | None, most: float | None) -> float:
    return (most or 0) if value is None else value
