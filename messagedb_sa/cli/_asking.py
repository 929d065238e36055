"""Asking before something is changed or deleted, and showing how far a long task is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from messagedb_sa.cli._exit_codes import ExitCode, Failure
from messagedb_sa.cli._output import console, safe


class Report(Protocol):
    """Tells how many are done, and of how many if that is known now."""

    def __call__(self, done: int, total: int | None = None, /) -> None: ...


def confirm(question: str, *, yes: bool) -> None:
    """Ask, unless ``yes``. Raises Failure if the answer is not yes, or if nobody is there to be asked."""
    if yes:
        return
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failure(f"{question} Nobody can be asked, since this is not a terminal: pass --yes", ExitCode.USAGE)
    sys.stderr.write(f"{safe(question)} [y/N] ")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if answer.strip().lower() not in ("y", "yes"):
        raise Failure("nothing was changed")


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Report]:
    """During the block, a bar on standard error. Call what it yields with how many are done, of ``total`` if known.

    If standard error is not a terminal, nothing is shown.
    """
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield lambda done, total=None: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    shown = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*shown, console=screen, transient=True) as bar:
        task = bar.add_task(safe(what), total=total)
        yield lambda done, total=total: bar.update(task, completed=done, total=total)
