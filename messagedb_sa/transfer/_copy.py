"""Copies a store to another one, and goes on where an earlier copy stopped."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Engine

from messagedb_sa import Store
from messagedb_sa import _arguments as arguments
from messagedb_sa.store._execute import run_alone
from messagedb_sa.store._operation import Operation
from messagedb_sa.store._statements import END_OF_ALL
from messagedb_sa.transfer import _statements as statements
from messagedb_sa.transfer._raw import (
    SETTLE_SECONDS,
    RawMessage,
    SettledEnd,
    engine_of,
    pages,
    raw_messages,
    read,
    scalar,
)
from messagedb_sa.transfer._results import OnProgress, Transferred, TransferRefused
from messagedb_sa.transfer._writing import advance_sequence, execute, lock_messages, transaction


def copy(
    source: Store,
    target: Store,
    *,
    settle_seconds: float = SETTLE_SECONDS,
    on_progress: OnProgress | None = None,
) -> Transferred:
    """Copy all messages of a store to another one, exactly: with their global positions, and the gaps between these.

    The target needs an installed store: empty, or with an earlier copy, which is then continued. So a copy that was
    killed, at any point, goes on if you call it again; its progress is the target's last message. Each page of messages
    is a transaction. The next message that is written to the target gets a global position after the last one.

    The source may be written to in the meantime. The copy ends at what was the end when it began, without holes:
    ``settle_seconds`` and ``unsettled`` are as in ``export_messages``. Call it again to copy the rest.

    After the messages, the rows of ``consumer_positions`` are copied, if the source has that table: none of them
    beyond the last message that was copied, so that consumers skip nothing there. Run consumers and writers on the
    target when the copy is complete, and not before.

    The role needs to read the source, and to be the owner of the target's tables. Raises TransferRefused if the
    target's last message is not the same in the source, or if others write to the target; then nothing was written, or
    only what was copied before. ``verify`` compares the rest.

    ``on_progress`` is called after each page with the global position that was reached, and the last one to copy.
    """
    reading, writing = engine_of("source", source), engine_of("target", target)
    settle_seconds = arguments.seconds("settle_seconds", settle_seconds)
    copied = 0
    with reading.connect() as connection:
        with transaction(writing) as there:
            # A copy that was killed may still be committing.
            lock_messages(there)
            last = _last_copied(connection, there)
            with_positions = _has_positions(connection, there)
        end, unsettled = run_alone(connection, SettledEnd(last, settle_seconds))
        for page in pages(connection, statements.READ_ALL, last, end):
            with transaction(writing) as there:
                _append(there, page, last)
            copied += len(page)
            last = page[-1].global_position
            if on_progress is not None:
                on_progress(last, end)
        if with_positions:
            _copy_positions(connection, writing, last)
    return Transferred(copied, last, unsettled)


def _last_copied(source: Connection, target: Connection) -> int:
    """The global position up to which the target has a copy, 0 if it is empty."""
    last = raw_messages(execute(target, statements.READ_LAST))
    if not last:
        return 0
    position = last[0].global_position
    if read(source, statements.READ_ONE, position=position) != last:
        name = f"global position {position}, message {last[0].position} of stream {last[0].stream_name!r}"
        raise TransferRefused(
            [f"the target is not a copy of the source: its last message ({name}, id {last[0].id}) is not in the source"]
        )
    return position


def _append(target: Connection, page: Sequence[RawMessage], after: int) -> None:
    lock_messages(target)
    last = execute(target, END_OF_ALL)[0][0]
    if last != after:
        raise TransferRefused([f"others write to the target: its last message has global position {last}, not {after}"])
    execute(target, statements.APPEND, **dict(zip(RawMessage._fields, map(list, zip(*page, strict=True)), strict=True)))
    advance_sequence(target)


def _has_positions(source: Connection, target: Connection) -> bool:
    """Whether the table of positions is to be copied."""
    if not run_alone(source, Operation(statements.HAS_POSITIONS, {}, scalar)):
        return False
    if scalar(execute(target, statements.HAS_POSITIONS)):
        return True
    if run_alone(source, Operation(statements.ANY_POSITION, {}, scalar)):
        raise TransferRefused(
            [
                "the source has consumers' positions in the table consumer_positions, which the target does not have: "
                "upgrade the target's store to messagedb_0004 or later"
            ]
        )
    return False


def _copy_positions(source: Connection, target: Engine, end: int) -> None:
    after_name = ""
    while True:
        parameters = {"after_name": after_name, "end": end}
        name, rows = run_alone(source, Operation(statements.READ_POSITIONS, parameters, lambda rows: rows[0]))
        if name is None:
            return
        with transaction(target) as connection:
            execute(connection, statements.WRITE_POSITIONS, rows=rows)
        after_name = name
