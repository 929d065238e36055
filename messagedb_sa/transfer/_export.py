"""Exports a stream, a category or the whole store as JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator

from messagedb_sa import Store
from messagedb_sa import _arguments as arguments
from messagedb_sa import stream_name as names
from messagedb_sa.store._execute import run_alone
from messagedb_sa.transfer import _statements as statements
from messagedb_sa.transfer._files import File, written
from messagedb_sa.transfer._lines import line_of
from messagedb_sa.transfer._raw import SETTLE_SECONDS, RawMessage, SettledEnd, engine_of, pages
from messagedb_sa.transfer._results import OnProgress, Transferred


def export_messages(
    store: Store,
    name: str,
    file: File,
    *,
    position: int | None = None,
    settle_seconds: float = SETTLE_SECONDS,
    on_progress: OnProgress | None = None,
) -> Transferred:
    """Write the messages of a stream, of a category, or of the whole store (``$all``) to a file, in order.

    Each line is a message as a JSON object in UTF-8, with the fields of ``Message.as_json_dict``. Data and metadata are
    the database's own text, so that numbers keep all their digits. A field that is JSON's null, and not NULL, is named
    in a ninth field: ``"json_null": ["data"]``.

    ``file`` is a path or an open binary file. A path gets the file when it is complete; until then, and if the export
    fails, it keeps what it had. If the path ends with ``.gz``, the file is compressed.

    ``position`` is the first to export, inclusive: of a stream its position, otherwise the global position. None means
    the beginning. The export ends at what was the end when it began, so it ends while others write.

    ``$all`` has no holes, as in ``Store.read``: if a number is missing, the export first waits until the transactions
    that are writing at that moment have ended, for at most ``settle_seconds``. If that is not enough, it ends before
    the missing number, which is the ``unsettled`` of the result. On a standby server it raises CannotSettle.

    ``on_progress`` is called after each page with the position that was reached, and the last one to export.
    """
    engine = engine_of("store", store)
    name = arguments.text("name", name)
    first = 0 if names.id(name) is not None else 1
    first = first if position is None else arguments.integer("position", position)
    settle_seconds = arguments.seconds("settle_seconds", settle_seconds)
    exported, last, unsettled = 0, 0, None
    with engine.connect() as connection:
        found: Iterator[list[RawMessage]]
        if name == arguments.ALL:
            end, unsettled = run_alone(connection, SettledEnd(first - 1, settle_seconds))
            found = pages(connection, statements.READ_ALL, first - 1, end)
        elif names.is_category(name):
            end = store.last_global_position(name)
            found = pages(connection, statements.READ_CATEGORY, first - 1, end, name=name)
        else:
            end = store.stream_version(name)
            found = pages(connection, statements.READ_STREAM, first - 1, end, "position", name=name)
        with written(file) as out:
            for page in found:
                out.write("".join(map(line_of, page)).encode())
                exported += len(page)
                last = page[-1].global_position
                if on_progress is not None:
                    on_progress(last if names.is_category(name) else page[-1].position, end)
    return Transferred(exported, last, unsettled)
