"""Imports JSON Lines: first into a temporary table, where they are checked, and then in one go into the store."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import IO

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from messagedb_sa import Store
from messagedb_sa import _arguments as arguments
from messagedb_sa._drivers.errors import server_error
from messagedb_sa.transfer import _statements as statements
from messagedb_sa.transfer._files import File, opened
from messagedb_sa.transfer._raw import engine_of
from messagedb_sa.transfer._results import OnProgress, Transferred, TransferRefused
from messagedb_sa.transfer._writing import advance_sequence, execute, lock_messages, transaction

# What PostgreSQL says about a value: data exceptions, a missing one, and what it cannot hold.
_ABOUT_A_LINE = ("22", "23", "54")
_MESSAGES_AT_ONCE = 10_000
_KINDS = {
    "id": "the text of a UUID",
    "stream_name": "a text",
    "type": "a text",
    "position": "an integer",
    "global_position": "an integer",
    "time": "a time in ISO 8601 with its offset, such as 2026-11-23T12:00:00.000000+00:00",
}


def import_messages(
    store: Store,
    file: File,
    *,
    new_global_positions: bool = False,
    allow_gaps: bool = False,
    on_progress: OnProgress | None = None,
) -> Transferred:
    """Import the messages of a file that ``export_messages`` wrote, all or none, with their ids, times and positions.

    ``file`` is a path or an open binary file. If the path ends with ``.gz``, it is decompressed.

    By default the messages keep their global positions too. So they must come after all messages of the store, which is
    usually empty. The role must be the owner of the store's tables, and nobody can write to the store from the checks
    to the end.

    With ``new_global_positions``, the messages come beside what the store has, and get new global positions in the
    order of the file. The role needs the same privileges as to write. Only the categories in the file are locked. What
    refers to the old global positions, in metadata and in the recorded positions of consumers, is imported as it is.

    The file is first loaded into a temporary table, so the role needs the privilege TEMPORARY on the database. Then it
    is checked: each stream must continue where it ends in the store, or begin at position 0, without gaps, and no id
    may exist already. TransferRefused names the lines that conflict, before anything is written.

    ``allow_gaps``: for streams from which messages were removed. Positions may then be missing, but not go back.

    ``on_progress`` is called with the number of messages that were loaded and None, and then with the number of those
    that were written and their total.
    """
    engine = engine_of("store", store)
    arguments.boolean("new_global_positions", new_global_positions)
    arguments.boolean("allow_gaps", allow_gaps)
    with opened(file) as lines, transaction(engine) as connection:
        execute(connection, statements.CREATE_STAGED)
        loaded = last_line = 0
        for numbers, texts in _batches(lines):
            _stage(connection, numbers, texts)
            loaded, last_line = loaded + len(texts), numbers[-1]
            if on_progress is not None:
                on_progress(loaded, None)
        if not loaded:
            return Transferred(0, 0)
        execute(connection, statements.ANALYZE_STAGED)
        if new_global_positions:
            execute(connection, statements.LOCK_CATEGORIES)
        else:
            lock_messages(connection)
        _check(connection, keeps_global_positions=not new_global_positions, allow_gaps=allow_gaps)
        write = statements.IMPORT_WITH_NEW_GLOBAL_POSITIONS if new_global_positions else statements.IMPORT
        written = last = 0
        for after in range(0, last_line, _MESSAGES_AT_ONCE):
            number, position = execute(connection, write, after=after, last=after + _MESSAGES_AT_ONCE)[0]
            written, last = written + number, position or last
            if on_progress is not None:
                on_progress(written, loaded)
        if not new_global_positions:
            advance_sequence(connection)
    return Transferred(written, last)


def _batches(lines: IO[bytes]) -> Iterator[tuple[list[int], list[str]]]:
    """The numbers of lines, and the lines, up to the limits of a page. Blank lines are left out."""
    numbers: list[int] = []
    texts: list[str] = []
    size = 0
    for number, line in _numbered(lines):
        if line.isspace():
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise TransferRefused([f"line {number}: must be in UTF-8 ({error.reason})"]) from error
        if "\0" in text:
            raise TransferRefused([f"line {number}: {arguments.CONTAINS_NUL}"])
        numbers.append(number)
        texts.append(text)
        size += len(line)
        if len(texts) == statements.PAGE_MESSAGES or size >= statements.PAGE_BYTES:
            yield numbers, texts
            numbers, texts, size = [], [], 0
    if texts:
        yield numbers, texts


def _numbered(lines: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TransferRefused([f"line {number + 1}: the compressed file is damaged: {error}"]) from error


def _stage(connection: Connection, numbers: Sequence[int], lines: Sequence[str]) -> None:
    try:
        with connection.begin_nested():
            execute(connection, statements.STAGE, lines=lines, numbers=numbers)
    except DBAPIError as error:
        state, message, _, _ = server_error(error)
        if not (state or "").startswith(_ABOUT_A_LINE):
            raise
        if len(lines) == 1:
            column = re.search(r'"(\w+)"', message) if state == "23502" else None
            if column:
                message = f"{column[1]} must be {_KINDS[column[1]]}"
            elif state == "22023":
                message = "must be a JSON object"
            raise TransferRefused([f"line {numbers[0]}: {message}"]) from error
        # Which one it is.
        for number, line in zip(numbers, lines, strict=True):
            _stage(connection, [number], [line])
        raise


def _check(connection: Connection, *, keeps_global_positions: bool, allow_gaps: bool) -> None:
    if keeps_global_positions:
        first, last = execute(connection, statements.BEGINNING_OF_ALL)[0]
        if first <= last:
            raise TransferRefused(
                [
                    f"the file begins at global position {first}, but the store has messages up to {last}: import into "
                    "an empty store, or with new global positions"
                ]
            )
    problems = [
        f"line {line}: the id {id} is also in line {earlier}"
        for line, id, earlier in execute(connection, statements.IDS_TWICE)
    ]
    problems += [
        f"line {line}: the store has a message with the id {id}, at position {position} of stream {stream_name!r}"
        for line, id, stream_name, position in execute(connection, statements.IDS_TAKEN)
    ]
    problems += [
        f"line {line}: position {position} of stream {stream_name!r} comes after position {previous}"
        for line, stream_name, position, previous in execute(
            connection, statements.ORDER_IN_STREAMS, allow_gaps=allow_gaps
        )
    ]
    problems += [
        f"line {line}: stream {stream_name!r} begins at position {position}, and must begin at {version + 1}, since "
        + ("the store does not have it" if version < 0 else f"the store has it up to {version}")
        for line, stream_name, position, version in execute(connection, statements.BEGINNINGS, allow_gaps=allow_gaps)
    ]
    if keeps_global_positions:
        problems += [
            f"line {line}: global position {position} comes after {previous}"
            for line, position, previous in execute(connection, statements.ORDER_OF_ALL)
        ]
    if problems:
        raise TransferRefused(problems[: statements.NO_OF_PROBLEMS])
