"""The SQL of the commands that read, where the store has no method."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, bindparam, func, literal_column, select

from messagedb_sa import functions
from messagedb_sa.schema import messages

_category = functions.category(messages.c.stream_name).label("category")
_TYPES = select(_category, messages.c.type, func.count()).group_by(literal_column("1"), literal_column("2"))
_TYPES_OF_CATEGORY = _TYPES.where(functions.category(messages.c.stream_name) == bindparam("wanted"))


def types_of(category: str | None) -> tuple[Select[Any], dict[str, Any]]:
    """The statement and its parameters: category, type and the number of messages."""
    return (_TYPES, {}) if category is None else (_TYPES_OF_CATEGORY, {"wanted": category})
