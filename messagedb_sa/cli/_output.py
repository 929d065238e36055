"""What the command prints: tables for people, JSON Lines for programs, and nothing that a terminal would obey."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# As many rows are held in memory, and looked at for the widths of the columns.
BATCH = 1000
_GAP = 2
_LEAST = 8
"""To so many cells a flexible column may be shortened. With less space, each row is shown as a list of its values."""

# Control and format characters, surrogates, line and paragraph separators: escape sequences, text that runs backwards,
# characters that nobody sees. Two joiners of letters stay: languages need them.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u08e2\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)


def safe(text: str) -> str:
    """The text with escapes such as ``\\x1b`` for all that a terminal would obey or hide."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def as_json(value: object) -> str:
    """The value as JSON in one line, with a time in ISO 8601 and a duration in seconds."""
    return _UNSAFE.sub(_json_escape, json.dumps(value, ensure_ascii=False, default=_json_value))


def _json_escape(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1] if ord(found[0]) > 0x7F else f"\\u{ord(found[0]):04x}"


def _json_value(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat(timespec="microseconds")
    if isinstance(value, timedelta):
        return value.total_seconds()
    # What an engine's own decoder makes of JSON, and ids.
    return str(value)


class Column(NamedTuple):
    """``name`` is the heading and the name in JSON. A flexible column is shortened if a terminal is narrow.

    With ``is_json``, people see its values as JSON too.
    """

    name: str
    flexible: bool = False
    is_json: bool = False


class Output:
    """Standard output, in the form that the user has chosen."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json

    def rows(
        self, columns: Sequence[Column], rows: Iterable[Sequence[Any]], *, live: bool = False, empty: str = ""
    ) -> int:
        """Print rows with values in the order of the columns, as they come; return how many.

        At most a thousand rows are held in memory. With ``live``, each row is printed at once. If there are no rows,
        people see ``empty`` on standard error.
        """
        counted = _Counted(rows)
        if self.json:
            names = [each.name for each in columns]
            for row in counted:
                sys.stdout.write(as_json(dict(zip(names, row, strict=True))) + "\n")
                if live:
                    sys.stdout.flush()
            return counted.number
        iterator = iter(counted)
        first = list(islice(iterator, 1 if live else BATCH))
        if first:
            table: _Table = _Terminal(columns, console()) if console().is_terminal else _Plain(columns)
            for batch in chain([first], _batches(iterator, 1 if live else BATCH)):
                table.show(batch)
                if live:
                    sys.stdout.flush()
        elif empty:
            say(empty, name="")
        return counted.number

    def values(self, columns: Sequence[Column], row: Sequence[Any]) -> None:
        """Print one row, for people as a list of its values."""
        if self.json:
            self.rows(columns, [row])
        elif console().is_terminal:
            _Terminal(columns, console()).show_records([row])
        else:
            width = max(len(each.name) for each in columns)
            for column, value in zip(columns, row, strict=True):
                sys.stdout.write(f"{column.name:{width}}  {_plain(column, value)}".rstrip() + "\n")

    def result(self, text: str, **values: Any) -> None:
        """Print what was done: a line for people, the values for programs."""
        if self.json:
            self.rows([Column(name) for name in values], [[*values.values()]])
        else:
            self.line(text)

    def line(self, text: str) -> None:
        """Print a line for people; programs do not get it."""
        if not self.json:
            sys.stdout.write(safe(text) + "\n")

    def flush(self) -> None:
        """Write out what was printed: more comes only later."""
        sys.stdout.flush()


def console(*, stderr: bool = False) -> Console:
    """What knows the width and the colours of the terminal. Pass it Text, never str: a str may have markup."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def print_tree(nodes: Iterable[tuple[int, str, bool]]) -> None:
    """Print nodes in depth-first order, each with its depth, its text, and whether it stands out."""
    from rich.tree import Tree

    screen = console()
    root = Tree("", hide_root=True)
    path = [root]
    for depth, text, stands_out in nodes:
        label = _text(safe(text))
        label.no_wrap, label.overflow = True, "ellipsis" if screen.is_terminal else "ignore"
        label.stylize("bold" if stands_out else "")
        del path[depth + 1 :]
        path.append(path[-1].add(label))
    screen.print(root, soft_wrap=not screen.is_terminal)


def print_marked(mark: str, style: str, text: str, below: Sequence[str]) -> None:
    """Print a text with a coloured mark before it, and indented texts below it, whose lines stay lines."""
    from rich.padding import Padding
    from rich.text import Text

    screen = console()
    wraps = screen.is_terminal
    line = Text.assemble((f"{mark:<8} ", style), safe(text))
    screen.print(line, soft_wrap=not wraps)
    for each in below:
        for part in each.splitlines():
            indented: Any = Padding(_text(safe(part)), (0, 0, 0, 9)) if wraps else _text(" " * 9 + safe(part))
            screen.print(indented, soft_wrap=not wraps)


def time_text(time: datetime) -> str:
    """In the zone of the reader, to the second."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def say(text: str, *, name: str = "messagedb: ") -> None:
    """Print to standard error. Of several lines, each stays one."""
    try:
        for line in f"{name}{text}".splitlines():
            sys.stderr.write(safe(line.replace("\t", "    ")) + "\n")
        sys.stderr.flush()
    except OSError:
        # Nobody reads it.
        pass


def discard_output() -> None:
    """Let nothing more be written to standard output: at its end, the interpreter would try to write what waits."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass


class _Counted:
    def __init__(self, rows: Iterable[Sequence[Any]]) -> None:
        self._rows = rows
        self.number = 0

    def __iter__(self) -> Iterator[Sequence[Any]]:
        for row in self._rows:
            self.number += 1
            yield row


def _batches(rows: Iterator[Sequence[Any]], size: int) -> Iterator[list[Sequence[Any]]]:
    while batch := list(islice(rows, size)):
        yield batch


class _Table:
    """Batches of rows, one below the other. Widths only grow, so that columns stay where they are."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._widths = [len(each.name) for each in columns]
        self._is_first = True

    def show(self, batch: list[Sequence[Any]]) -> None:
        raise NotImplementedError

    def _cells(self, batch: list[Sequence[Any]], convert: Any) -> list[list[str]]:
        from rich.cells import cell_len

        cells = [[convert(*each) for each in zip(self._columns, row, strict=True)] for row in batch]
        for number in range(len(self._columns)):
            self._widths[number] = max(self._widths[number], *(cell_len(row[number]) for row in cells))
        return cells


class _Plain(_Table):
    """For files and pipes: nothing is shortened."""

    def show(self, batch: list[Sequence[Any]]) -> None:
        cells = self._cells(batch, _plain)
        if self._is_first:
            self._write([each.name for each in self._columns], batch[0])
        for row, values in zip(cells, batch, strict=True):
            self._write(row, values)
        self._is_first = False

    def _write(self, row: list[str], values: Sequence[Any]) -> None:
        from rich.cells import cell_len

        padded = []
        for cell, value, width in zip(row, values, self._widths, strict=True):
            padding = " " * (width - cell_len(cell))
            padded.append(padding + cell if _is_number(value) else cell + padding)
        sys.stdout.write((" " * _GAP).join(padded).rstrip() + "\n")


class _Terminal(_Table):
    """For a terminal: flexible columns are shortened to its width. If that is not enough, each row becomes a list."""

    def __init__(self, columns: Sequence[Column], console: Console) -> None:
        super().__init__(columns)
        self._console = console
        self._as_records = False

    def show(self, batch: list[Sequence[Any]]) -> None:
        from rich.table import Table

        cells = self._cells(batch, _short)
        widths = self._fitted()
        if widths is None or self._as_records:
            self.show_records(batch)
            return
        table = Table(
            box=None, show_header=self._is_first, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0)
        )
        for column, width, value in zip(self._columns, widths, batch[0], strict=True):
            justify: Any = "right" if _is_number(value) else "left"
            table.add_column(_text(column.name), width=width, no_wrap=True, overflow="ellipsis", justify=justify)
        for row in cells:
            table.add_row(*map(_text, row))
        self._console.print(table)
        self._is_first = False

    def show_records(self, batch: list[Sequence[Any]]) -> None:
        from rich.table import Table

        self._as_records = True
        for row in batch:
            if not self._is_first:
                self._console.print()
            table = Table.grid(padding=(0, _GAP, 0, 0))
            table.add_column(style="bold", no_wrap=True)
            table.add_column(overflow="fold")
            for column, value in zip(self._columns, row, strict=True):
                table.add_row(_text(column.name), _text(_short(column, value)))
            self._console.print(table)
            self._is_first = False

    def _fitted(self) -> list[int] | None:
        """The widths of the columns on this terminal. None if they do not fit."""
        widths = list(self._widths)
        free = self._console.width - _GAP * (len(widths) - 1)
        least = [
            min(width, _LEAST) if each.flexible else width for each, width in zip(self._columns, widths, strict=True)
        ]
        if sum(least) > free:
            return None
        while sum(widths) > free:
            # The widest of those that can be shortened.
            widest = max((n for n in range(len(widths)) if widths[n] > least[n]), key=lambda n: widths[n])
            widths[widest] -= 1
        return widths


def _text(value: str) -> Text:
    from rich.text import Text

    return Text(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(column: Column, value: object) -> str:
    """For a terminal: a time in its zone, to the second."""
    if isinstance(value, datetime):
        return time_text(value)
    return _plain(column, value)


def _plain(column: Column, value: object) -> str:
    if value is None and not column.is_json:
        return ""
    if isinstance(value, datetime):
        return value.astimezone().isoformat(sep=" ")
    if column.is_json or not isinstance(value, (str, int, float, timedelta)):
        return as_json(value)
    return safe(str(value))
