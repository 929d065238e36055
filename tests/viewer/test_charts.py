"""What goes where in a chart."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

import pytest

from messagedb_sa.viewer._charts import (
    COLOURS,
    MINUTES,
    OTHERS,
    Sample,
    duration,
    messages_a_minute,
    nice,
    nice_seconds,
    over_time,
    since,
)

NOON = datetime(2026, 11, 26, 12, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


class Count(NamedTuple):
    minute: datetime
    category: str
    type: str
    messages: int


def test_the_bars_of_a_minute_stand_on_each_other_and_fill_what_they_count() -> None:
    counts = [
        Count(NOON, "order", "Placed", 6),
        Count(NOON, "account", "Opened", 4),
        Count(NOON - MINUTE, "order", "Paid", 5),
    ]
    chart = messages_a_minute(counts, "category", 1000)
    assert chart is not None
    assert (len(chart.minutes), chart.minutes[-1].time, chart.top, chart.uncounted) == (MINUTES, NOON, 10, 0)
    assert [(each.name, each.value) for each in chart.series] == [("order", 11), ("account", 4)]
    assert [(each.y, each.height) for each in chart.minutes[-1].bars] == [(40, 60), (0, 40)]
    assert [(each.y, each.height) for each in chart.minutes[-2].bars] == [(50, 50)]
    assert chart.minutes[-1].counts == [6, 4]
    assert chart.minutes[-2].present == [("order", 5)]
    by_type = messages_a_minute(counts, "type", 1000)
    assert by_type is not None
    assert [each.name for each in by_type.series] == ["Placed", "Paid", "Opened"]


def test_only_the_last_hour_is_drawn() -> None:
    chart = messages_a_minute([Count(NOON, "a", "A", 1), Count(NOON - 60 * MINUTE, "b", "B", 1)], "category", 1000)
    assert chart is not None
    assert [each.name for each in chart.series] == ["a"]


def test_what_was_not_looked_at_is_not_drawn_as_if_nothing_had_happened() -> None:
    counts = [Count(NOON - n * MINUTE, "a", "A", 10) for n in range(4)]
    chart = messages_a_minute(counts, "category", 40)
    assert chart is not None
    # The oldest minute may have more than was looked at.
    assert chart.uncounted == MINUTES - 3
    assert [each.counts for each in chart.minutes[-4:]] == [[0], [10], [10], [10]]
    assert chart.series[0].value == 30
    complete = messages_a_minute(counts, "category", 41)
    assert complete is not None
    assert (complete.uncounted, complete.series[0].value) == (0, 40)


def test_beyond_the_colours_all_are_one_series() -> None:
    counts = [Count(NOON, f"c{n}", "A", n + 1) for n in range(COLOURS + 3)]
    chart = messages_a_minute(counts, "category", 10_000)
    assert chart is not None
    assert [each.style for each in chart.series] == [*(f"s{n}" for n in range(COLOURS)), "others"]
    assert (chart.series[-1].name, chart.series[-1].value) == (OTHERS, 1 + 2 + 3)
    assert sum(each.height for each in chart.minutes[-1].bars) == pytest.approx(100 * 55 / chart.top, abs=0.1)


def test_without_messages_there_is_no_chart() -> None:
    assert messages_a_minute([], "type", 1000) is None


def samples(*values: float | None, step: timedelta = 10 * SECOND) -> Sequence[Sample]:
    return [Sample(NOON + n * step, {"a": value}) for n, value in enumerate(values)]


def test_a_line_goes_through_all_samples_from_edge_to_edge() -> None:
    chart = over_time(samples(0, 5, 10), 30 * SECOND)
    assert chart is not None
    assert (chart.top, chart.is_cut) == (10, False)
    assert chart.lines[0].points == ["0.0,100.00 500.0,50.00 1000.0,0.00"]
    assert (chart.begin, chart.end) == (NOON, NOON + 20 * SECOND)


def test_where_nobody_has_sampled_there_is_no_line() -> None:
    chart = over_time(
        [*samples(1, 1), Sample(NOON + 100 * SECOND, {"a": 1}), Sample(NOON + 110 * SECOND, {})], 30 * SECOND
    )
    assert chart is not None
    assert len(chart.lines[0].points) == 2


def test_what_is_not_counted_is_at_the_edge_and_the_chart_says_so() -> None:
    chart = over_time(samples(500, None), 30 * SECOND, most=1000)
    assert chart is not None
    assert (chart.top, chart.is_cut, chart.series[0].value) == (1000, True, None)
    assert chart.lines[0].points[0].endswith(",0.00")


def test_those_that_are_furthest_behind_have_the_lines() -> None:
    of = {f"c{n}": float(n) for n in range(COLOURS + 2)}
    chart = over_time([Sample(NOON, of), Sample(NOON + SECOND, of)], 30 * SECOND)
    assert chart is not None
    assert [each.name for each in chart.series][:2] == ["c8", "c7"]
    assert (len(chart.lines), chart.left_out) == (COLOURS, 2)


@pytest.mark.parametrize("values", [(), (1,)])
def test_less_than_two_samples_are_no_line(values: tuple[float, ...]) -> None:
    assert over_time(samples(*values), 30 * SECOND) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (478, "8 min"),
        (90, "1.5 min"),
        (7200, "2 h"),
        (864_000, "10 d"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_upper_edge_is_a_round_number() -> None:
    assert [nice(each) for each in (0, 1, 3, 11, 50, 51, 4_999)] == [1, 1, 5, 20, 50, 100, 5_000]
    assert [nice_seconds(each) for each in (0, 31, 4000, 90_000, 400_000)] == [1, 60, 7200, 172_800, 432_000]


def test_clocks_that_differ_make_no_negative_age() -> None:
    assert (since(NOON + MINUTE, NOON), since(NOON - MINUTE, NOON), since(None, NOON)) == (0, 60, 0)
