"""What is printed: for people, for programs, and never what a terminal would obey. The values are hostile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .support import environment, on_terminal, plain

PROGRAM = """
import sys
from datetime import datetime, timedelta, timezone
from messagedb_sa.cli._asking import progress
from messagedb_sa.cli._output import Column, Output, say
COLUMNS = [Column("stream_name"), Column("position"), Column("data", flexible=True, is_json=True), Column("time")]
TIME = datetime(2026, 11, 26, 12, 30, 15, 123456, timezone.utc)
HOSTILE = "a\\x1b[31m\\x9b2J\\r\\n\\t\\x00\\x7f\\u202e\\u200b[bold]:smile:\\ud800\\U000e0041é"
ROWS = [("account-1", 7, {"owner": "Ada"}, TIME), (HOSTILE, 12345, {HOSTILE: HOSTILE}, None)]
output = Output(json="--json" in sys.argv)
sys.stdout.reconfigure(errors="backslashreplace")
"""
SHOW = PROGRAM + "output.rows(COLUMNS, ROWS)"
# What a terminal may get: lines, and the sequences for colours that rich sends.
HARMLESS = {"\n", "\x1b"}


def program(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def run(code: str, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        program(code, *arguments), env=environment(TZ="UTC", **variables), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_programs_get_every_value_as_it_is_and_a_terminal_would_obey_none() -> None:
    printed = run(SHOW, "--json")
    lines = printed.splitlines()
    assert len(lines) == 2
    assert {char for char in printed if not char.isprintable()} == {"\n"}
    first, second = map(json.loads, lines)
    assert list(first) == ["stream_name", "position", "data", "time"]
    assert first == {
        "stream_name": "account-1",
        "position": 7,
        "data": {"owner": "Ada"},
        "time": "2026-11-26T12:30:15.123456+00:00",
    }
    hostile = second["stream_name"]
    assert hostile == "a\x1b[31m\x9b2J\r\n\t\x00\x7f\u202e\u200b[bold]:smile:\ud800\U000e0041é"
    assert second == {"stream_name": hostile, "position": 12345, "data": {hostile: hostile}, "time": None}


def test_a_pipe_gets_the_whole_values_in_columns_without_colours() -> None:
    header, first, second = run(SHOW, COLUMNS="20").splitlines()
    hostile = r"a\x1b[31m\x9b2J\r\n\t\x00\x7f\u202e\u200b[bold]:smile:\ud800\U000e0041é"
    assert header.split() == ["stream_name", "position", "data", "time"]
    assert first.split("  ")[0] == "account-1"
    assert second.startswith(hostile)
    # Numbers end, and texts begin, in the same cell.
    assert header.index("position") + len("position") == first.index(" 7 ") + 2 == second.index("12345") + 5
    assert header.index("data") == first.index("{") == second.index("{")
    assert first.endswith("2026-11-26 12:30:15.123456+00:00")


@pytest.mark.parametrize("columns", [200, 100])
def test_a_terminal_gets_its_width_and_no_sequence_of_the_values(columns: int) -> None:
    code, shown = on_terminal(columns=columns, command=program(SHOW), TZ="UTC")
    assert code == 0
    assert {char for char in shown if not char.isprintable()} <= HARMLESS
    assert "\x1b[31m" not in shown
    lines = plain(shown).splitlines()
    assert max(map(len, lines)) <= columns
    assert r"a\x1b[31m\x9b2J\r\n\t\x00\x7f\u202e\u200b[bold]:smile:" in plain(shown)
    if columns == 200:
        assert lines[1].endswith("2026-11-26 12:30:15")


def test_a_narrow_terminal_gets_each_row_as_a_list() -> None:
    code, shown = on_terminal(columns=40, command=program(SHOW), TZ="UTC")
    assert code == 0
    assert {char for char in shown if not char.isprintable()} <= HARMLESS
    lines = [line.rstrip() for line in plain(shown).splitlines()]
    assert max(map(len, lines)) <= 40
    assert lines[:5] == [
        "stream_name  account-1",
        "position     7",
        'data         {"owner": "Ada"}',
        "time         2026-11-26 12:30:15",
        "",
    ]


def test_flexible_values_are_shortened_before_a_row_becomes_a_list() -> None:
    code = PROGRAM + "output.rows(COLUMNS, [('account-1', 1, {'text': 'x' * 500}, TIME)])"
    _, shown = on_terminal(columns=60, command=program(code), TZ="UTC")
    header, row = (line.rstrip() for line in plain(shown).splitlines())
    assert header.split() == ["stream_name", "position", "data", "time"]
    assert len(row) <= 60
    assert row.startswith("account-1")
    assert "…" in row
    assert row.endswith("2026-11-26 12:30:15")


def test_no_color_has_no_colours() -> None:
    _, shown = on_terminal(columns=100, command=program(SHOW), TZ="UTC", NO_COLOR="1")
    assert "\x1b[3" not in shown


def test_times_are_those_of_the_readers_zone() -> None:
    row = PROGRAM + "output.values([Column('time')], [TIME])"
    _, shown = on_terminal(command=program(row), TZ="Asia/Kolkata")
    assert plain(shown).split() == ["time", "2026-11-26", "18:00:15"]
    assert json.loads(run(row, "--json"))["time"] == "2026-11-26T12:30:15.123456+00:00"


def test_a_terminal_without_unicode_gets_escapes() -> None:
    code = PROGRAM + "output.line('é…')"
    done = subprocess.run(
        program(code), env=environment(PYTHONIOENCODING="ascii:backslashreplace"), capture_output=True
    )
    assert done.stdout == b"\\xe9\\u2026\n"


def test_no_rows_are_said_to_people_only() -> None:
    code = PROGRAM + "assert output.rows(COLUMNS, [], empty='no messages') == 0"
    done = subprocess.run(program(code), env=environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "no messages\n")
    assert run(code, "--json") == ""


@pytest.mark.parametrize("form", ["--json", "--plain"])
def test_thirty_times_the_rows_need_no_more_memory(form: str) -> None:
    code = PROGRAM + (
        "import resource\n"
        "def peak(number):\n"
        "    assert output.rows([Column('a'), Column('b')], (('x' * 40, n) for n in range(number))) == number\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "small, large = peak(10_000), peak(300_000)\n"
        "unit = 1 if sys.platform == 'darwin' else 1024\n"
        "print((large - small) * unit, file=sys.stderr)\n"
    )
    done = subprocess.run(
        program(code, form), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0
    assert int(done.stderr) < 5_000_000


def test_live_rows_are_printed_as_they_come() -> None:
    code = PROGRAM + (
        "def rows():\n"
        "    for n in range(2):\n"
        "        yield (f'row-{n}', n)\n"
        "        sys.stdin.readline()\n"
        "output.rows([Column('name'), Column('number')], rows(), live=True)\n"
    )
    for form in ("--json", "--plain"):
        ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(program(code, form), env=environment(), text=True, **ends) as process:  # type: ignore[call-overload]
            for n in range(2):
                while f"row-{n}" not in (line := process.stdout.readline()):
                    assert line.split() == ["name", "number"]
                process.stdin.write("\n")
                process.stdin.flush()
        assert process.returncode == 0


def test_progress_is_for_a_terminal_only() -> None:
    code = PROGRAM + "with progress('copying \\x1b[31m', 3) as advance:\n    [advance(n) for n in range(4)]\n"
    done = subprocess.run(program(code), env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    code_, shown = on_terminal(command=program(code))
    assert code_ == 0
    assert r"copying \x1b[31m" in plain(shown)
    assert "3/3" in plain(shown)


def test_a_full_disk_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [os.fspath(Path(sys.executable).with_name("messagedb")), "sql"],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (1, "messagedb: [Errno 28] No space left on device\n")
