"""The command that shows a store on one screen, once or again and again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from messagedb_sa.cli._command import Commands
from messagedb_sa.cli._database import Database
from messagedb_sa.cli._exit_codes import ExitCode, failure_of
from messagedb_sa.cli._output import Output
from messagedb_sa.cli._status_found import MAX_LAG, MAX_PARKED, Status
from messagedb_sa.cli._status_screen import Screen

if TYPE_CHECKING:
    from messagedb_sa import Activity, Store

commands = Commands()

_SAMPLE = 10_000
_RATE_OF = timedelta(minutes=5)


@commands.add("status")
def status(
    database: Database,
    output: Output,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")] = False,
    every: Annotated[
        float,
        typer.Option("--every", metavar="SECONDS", min=0.1, max=86_400, help="The pause between two looks of --watch."),
    ] = 2.0,
) -> None:
    """Show the store on one screen: messages, categories, consumers, and what is in the way of readers."""
    with database.store() as store, Screen(output, watch=watch) as screen:
        last = look(store, database.shown)
        while True:
            screen.show(last)
            if not watch:
                return
            time.sleep(every)
            last = _look_again(store, database, last)


def _look_again(store: Store, database: Database, last: Status) -> Status:
    try:
        return look(store, database.shown)
    except Exception as error:
        failure = failure_of(error, database)
        if failure is None or failure.code != ExitCode.NO_CONNECTION:
            raise
        return last._replace(trouble=failure.text)


def look(store: Store, database: str) -> Status:
    from messagedb_sa import install

    now = datetime.now(timezone.utc)
    most = MAX_PARKED + 1
    letters = islice(store.iter_dead_letters(batch_size=most, no_of_messages=most), most)
    return Status(
        at=now,
        database=database,
        # First: they are there if the store is not.
        findings=install.diagnose(store.engine),
        categories=store.categories(),
        last=next(iter(store.read("$all", no_of_messages=1, backwards=True)), None),
        per_minute=per_minute(store.activity(no_of_messages=_SAMPLE), now),
        consumers=store.consumers(max_lag=MAX_LAG),
        parked=Counter((each.category, each.identifier) for each in letters),
        writers=store.open_writers(),
    )


def per_minute(activity: Iterable[Activity], now: datetime) -> float:
    """The messages of the last five minutes, or of the time that the sample goes back, by minute."""
    counts: Counter[datetime] = Counter()
    for each in activity:
        counts[each.minute] += each.messages
    begin = now - _RATE_OF
    if counts.total() >= _SAMPLE:
        begin = max(begin, min(counts))
    number = sum(number for minute, number in counts.items() if minute + timedelta(minutes=1) > begin)
    return number / max((now - begin) / timedelta(minutes=1), 1 / 60)
