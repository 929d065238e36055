"""What ``messagedb status`` draws."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from messagedb_sa.cli._consumers import age_of
from messagedb_sa.cli._output import Output, console, safe, time_text
from messagedb_sa.cli._status_found import MAX_LAG, MAX_PARKED, Status, as_row

if TYPE_CHECKING:
    from typing_extensions import Self

# Of each list at least, which fits on a screen of 24 lines, and what else is on it.
_MOST, _OTHER_LINES = 3, 18


class Screen:
    """Shows one status after the other: in the same place of a terminal, otherwise below each other."""

    def __init__(self, output: Output, *, watch: bool) -> None:
        self._output = output
        self._console = console()
        if not self._console.is_terminal:
            # Nothing is cut off in a file or a pipe.
            self._console.width = 1000
        self._live: Live | None = None
        if watch and self._console.is_terminal and not output.json:
            self._live = Live(console=self._console, auto_refresh=False, screen=True)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def show(self, status: Status) -> None:
        if self._output.json:
            columns, values = as_row(status)
            self._output.rows(columns, [values], live=True)
        elif self._live is None:
            self._console.print(drawn(status, self._console))
            self._output.flush()
        else:
            if not self._live.is_started:
                # Not before: the first look may fail, and its error must stay to be read.
                self._stack.enter_context(self._live)
            self._live.update(drawn(status, self._console), refresh=True)


def drawn(status: Status, screen: Console) -> Group:
    most = max(_MOST, (screen.height - _OTHER_LINES) // 2) if screen.is_terminal else 10**9
    parts: list[Any] = [_head(status), Text(), _categories(status, most), Text(), _consumers(status, most), Text()]
    parts += [*_parked(status, most), *_writers(status, 2 if screen.is_terminal else most), *_doctor(status)]
    return Group(*parts)


def _head(status: Status) -> Table:
    about = "about " if status.is_estimate else ""
    rows = [
        ("database", _short(status.database)),
        ("server", _short(status.found("server_version"))),
        ("store", _short(status.found("store"))),
        ("notifications", _short(status.found("notifications"))),
        ("messages", _short(f"{about}{status.messages:,}, {status.per_minute:,.0f} a minute")),
        ("last message", _short(_last(status))),
    ]
    if status.trouble:
        rows.append(("trouble", Text(safe(f"{status.trouble}. As of {time_text(status.at)}"), style="bold red")))
    table = _grid()
    for name, value in rows:
        table.add_row(Text(name, style="bold"), value)
    return table


def _last(status: Status) -> str:
    last = status.last
    if last is None:
        return "none"
    return f"{ago(last.time, status.at)}: {last.type} in {last.stream_name}, global position {last.global_position}"


def _categories(status: Status, most: int) -> Table | Text:
    if not status.categories:
        return Text("no categories: nothing has been written yet", style="dim")
    table = _table("category", "messages", "last message")
    largest = sorted(status.categories, key=lambda each: -each.messages)
    for each in largest[:most]:
        about = "~" if each.is_estimate else ""
        table.add_row(_short(each.name), Text(f"{about}{each.messages:,}"), Text(ago(each.last_time, status.at)))
    return _with_rest(table, len(largest) - most, "categories")


def _consumers(status: Status, most: int) -> Table | Text:
    if not status.consumers:
        return Text("no consumers: none has recorded a position", style="dim")
    table = _table("consumer", "lag", "age", "position")
    behind = sorted(status.consumers, key=lambda each: (-age_of(each), each.category))
    for each in behind[:most]:
        name = each.category if each.identifier is None else f"{each.category} {each.identifier}"
        if each.group_size is not None:
            name += f" {each.group_member} of {each.group_size}"
        lag = f"over {MAX_LAG:,}" if each.lag is None else f"{each.lag:,}"
        age = "" if each.waiting_since is None else lasting(age_of(each))
        position = "" if each.position is None else str(each.position)
        table.add_row(_short(name), Text(lag), Text(age), Text(position))
    return _with_rest(table, len(behind) - most, "consumers")


def _parked(status: Status, most: int) -> list[Text]:
    if not status.parked:
        return [_line("parked", "no messages")]
    several = [
        f"{number:,} of {category if identifier is None else f'{category} {identifier}'}"
        for (category, identifier), number in status.parked.most_common(most)
    ]
    more = " and more" if status.parked.total() > MAX_PARKED or len(status.parked) > most else ""
    return [_line("parked", ", ".join(several) + more, "yellow")]


def _writers(status: Status, most: int) -> list[Text]:
    if not status.writers:
        return [_line("in the way of $all", "nothing")]
    lines = []
    for each in status.writers[:most]:
        since = "" if each.since is None else f", open for {lasting(status.at - each.since)}"
        if each.process_id is None:
            text = f"the prepared transaction {each.prepared}{since}"
        else:
            name = f" ({each.application_name})" if each.application_name else ""
            what = f", {each.state}: {each.query}" if each.query else ""
            text = f"process {each.process_id}{name}{since}{what}"
        lines.append(_line("in the way of $all", text, "yellow"))
    if len(status.writers) > most:
        lines[-1] = _line("in the way of $all", f"{len(status.writers) - most + 1:,} more", "yellow")
    return lines


def _doctor(status: Status) -> list[Text]:
    lines = []
    for severity, style in (("error", "bold red"), ("warning", "yellow")):
        if codes := status.codes(severity):
            lines.append(_line(f"doctor: {severity}", f"{', '.join(codes)}. For more: messagedb doctor", style))
    return lines or [_line("doctor", "all is well")]


def ago(time: datetime, now: datetime) -> str:
    return f"{lasting(now - time)} ago"


def lasting(time: timedelta) -> str:
    """In the largest unit that fits: 5 s, 3 min, 2 h, 4 d."""
    seconds = max(0, int(time.total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:,} {unit}"
    return f"{seconds} s"


def _line(name: str, text: str, style: str = "") -> Text:
    line = Text.assemble((f"{name}: ", "bold"), (safe(text), style))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _short(text: str) -> Text:
    return Text(safe(text), no_wrap=True, overflow="ellipsis")


def _grid() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=len("notifications"))
    # A column that may wrap is the first to become narrower. Its cells say themselves that they do not wrap.
    table.add_column()
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(Text(first))
    for each in others:
        table.add_column(Text(each), no_wrap=True, justify="right")
    return table


def _with_rest(table: Table, rest: int, what: str) -> Table:
    if rest > 0:
        table.add_row(Text(f"and {rest:,} more {what}", style="dim"))
    return table
