"""The caller's own queries, passed to ``read``: text or a select, made into a statement that returns messages."""

from __future__ import annotations

import re

from sqlalchemy import BindParameter, Executable, TextClause, cast, select, text
from sqlalchemy.sql import visitors

from messagedb_sa import _arguments as arguments
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.schema import message_columns
from messagedb_sa.store._statements import COLUMNS

_PARAMETERS = ("stream_name", "position", "batch_size", "consumer_group_member", "consumer_group_size")


def messages_statement(sql: str | Executable) -> tuple[Executable, set[str]]:
    """The caller's query, with its columns cast to the types of Message DB's ``message``.

    Also returns the names of the parameters that it uses and has no values of its own for.
    """
    if isinstance(sql, str):
        sql = text(_with_named_binds(arguments.text("sql", sql)))
    if isinstance(sql, TextClause):
        sql = sql.columns(*message_columns(decoded=False))
    if not hasattr(sql, "subquery"):
        raise InvalidArgument("sql", sql, "must be a query: text, or a select; for a position, pass position=")
    query = sql.subquery()
    missing = [each.name for each in COLUMNS if each.name not in query.c]
    if missing:
        raise InvalidArgument("sql", sql, f"must return all columns of a message; missing: {', '.join(missing)}")
    statement = select(
        *(query.c[each.name] if each.name == "time" else cast(query.c[each.name], each.type) for each in COLUMNS)
    )
    parameters = (each for each in visitors.iterate(statement) if isinstance(each, BindParameter))
    return statement, {str(each.key) for each in parameters if each.required}


def _with_named_binds(sql: str) -> str:
    """Turn psycopg2's ``%(name)s`` and ``%%`` into the form that text() takes."""

    def replaced(match: re.Match[str]) -> str:
        if match["name"] is None:
            return "%" if match[0] == "%%" else rf"\{match[0]}"
        if match["name"] not in _PARAMETERS:
            known = ", ".join(_PARAMETERS)
            raise InvalidArgument("sql", sql, f"may use the parameters {known}; unknown: {match['name']}")
        return f":{match['name']}"

    # The line break ends a comment that the text may end with.
    return re.sub(r"%\((?P<name>\w+)\)s|%%|:", replaced, sql.rstrip().rstrip(";")) + "\n"
