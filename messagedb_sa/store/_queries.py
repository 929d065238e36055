"""Reads by query and conditional appends: how the queries are sent, and what is made of the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from messagedb_sa import stream_name as names
from messagedb_sa.errors import AppendConditionFailed, InvalidArgument, WrongExpectedVersion
from messagedb_sa.message import Message
from messagedb_sa.query import AppendCondition, Query, QueryResult
from messagedb_sa.store import _query_statements as statements
from messagedb_sa.store import _rows as rows
from messagedb_sa.store._operation import Page
from messagedb_sa.store._statements import GET_QUERY_MESSAGES


def encoded_queries(
    argument: str,
    queries: Sequence[Query],
    positions: Mapping[str, int],
    name_of: Callable[[str, type[Any]], str],
) -> str:
    """As JSON, each with the position of its category. ``name_of`` gives the message type of a registered class, and
    names the argument in its error."""
    encoded = []
    for number, query in enumerate(queries):
        types = [
            each if isinstance(each, str) else name_of(f"{argument}[{number}].types[{i}]", each)
            for i, each in enumerate(query.types)
        ]
        wanted = {"category": query.category, "position": positions[query.category], "types": types, "tags": query.tags}
        encoded.append({key: value for key, value in wanted.items() if value or key == "position"})
    # Without escapes, so that an error about the database's encoding can name the character.
    return json.dumps(encoded, ensure_ascii=False)


@dataclass(slots=True)
class QueryPage(Page):
    """A read by query, whose messages are a QueryResult. The next page begins after what this one knows of each
    category: in another category, a lower global position may still be committed."""

    positions: dict[str, int] = field(kw_only=True)
    encode: Callable[[Mapping[str, int]], str] = field(kw_only=True)

    def after(self, page: list[Message]) -> QueryPage | None:
        if len(page) < self.parameters["batch_size"]:
            return None
        assert isinstance(page, QueryResult)
        known = page.condition.after
        positions = {each: max(first, known[each] + 1) for each, first in self.positions.items()}
        return replace(self, parameters={**self.parameters, "queries": self.encode(positions)}, positions=positions)


def query_page(
    queries: tuple[Query, ...],
    position: int,
    batch_size: int,
    encode: Callable[[Mapping[str, int]], str],
    messages: rows.MessageRows,
) -> QueryPage:
    positions = {query.category: position for query in queries}
    return QueryPage(
        statements.READ_QUERY,
        {"queries": encode(positions), "batch_size": batch_size},
        partial(_result, queries, batch_size, messages.all),
        our_functions=GET_QUERY_MESSAGES,
        without_our_functions=statements.READ_QUERY_BY_CATEGORY,
        plain=partial(_result, queries, batch_size, messages.plain),
        positions=positions,
        encode=encode,
    )


def _result(
    queries: tuple[Query, ...],
    batch_size: int,
    decode: Callable[[Sequence[Any]], list[Message]],
    found: Sequence[Any],
) -> QueryResult:
    """A row without an id has the end of a category, others have messages."""
    messages = decode([row for row in found if row[0] is not None])
    known = {_text(row[1]): int(_text(row[4])) for row in found if row[0] is None}
    for message in messages:
        known[message.category] = max(known[message.category], message.global_position)
    if 0 <= batch_size <= len(messages):
        # There may be more that match, and come after the last one.
        last = messages[-1].global_position if messages else 0
        known = {category: min(last, end) for category, end in known.items()}
    return QueryResult(messages, AppendCondition(queries, known))


def _text(value: Any) -> str:
    """Of a page that is read again, values are bytes."""
    return value if isinstance(value, str) else str(value) if isinstance(value, int) else bytes(value).decode()


def written_positions(
    expected: Mapping[str, int | None], condition: AppendCondition | None, found: Sequence[Any]
) -> dict[str, int]:
    """The last position of each stream that was written to, or the error that says why none was."""
    for stream_name, position, version, text, global_position in found:
        if position is not None:
            continue
        if stream_name is None:
            raise _cannot_be_checked(expected, condition, level=text)
        if version is not None:
            raise WrongExpectedVersion(stream_name, cast(int, expected[stream_name]), version)
        assert condition is not None
        raise AppendConditionFailed(condition.after[names.category(stream_name)], stream_name, text, global_position)
    return {stream_name: position for stream_name, position, *_ in found}


def _cannot_be_checked(
    expected: Mapping[str, int | None], condition: AppendCondition | None, level: str
) -> InvalidArgument:
    what = "the version of a stream that is not written to" if condition is None else "a condition"
    reason = (
        f"{what} can only be checked in a READ COMMITTED transaction, not in a {level.upper()} one, whose snapshot "
        "may be older than the lock of the category"
    )
    return InvalidArgument("writes" if condition is None else "condition", condition or list(expected), reason)
