"""Queries for messages by type and tag, and the condition that none was written since you decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from messagedb_sa import _arguments as arguments
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message import Message

__all__ = ["AppendCondition", "Query", "QueryResult"]

MAX_QUERIES = 1000
"""PostgreSQL plans each by itself, which takes one or two milliseconds. With some 5,000, its stack is too
small."""


@dataclass(frozen=True, init=False, slots=True)
class Query:
    """The messages of a category that have one of these types, and all of these tags.

    ``types`` are names, or classes that are registered in the store's ``types``; none means any type. ``tags`` are
    texts; a message has them as a list in its metadata: ``{"tags": ["course:1", "student:2"]}``. No tags means that
    messages need none.
    """

    category: str
    types: tuple[str | type[Any], ...]
    tags: tuple[str, ...]

    def __init__(self, category: str, types: Iterable[str | type[Any]] = (), tags: Iterable[str] = ()) -> None:
        checked = {
            "category": _category(category),
            "types": tuple(
                each if isinstance(each, type) else arguments.text(f"types[{number}]", each)
                for number, each in enumerate(_several("types", types))
            ),
            "tags": tuple(
                arguments.text(f"tags[{number}]", each) for number, each in enumerate(_several("tags", tags))
            ),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, init=False, slots=True)
class AppendCondition:
    """Write only if no message matches one of ``queries``, up to 1,000, that came after what the decision was made on.

    ``store.read_query(queries).condition`` is the condition for a decision that was made on what was read. To make one
    yourself, pass ``after``: the global position up to which you know the category. 0 means that nothing may match at
    all. If the queries are of several categories, it must be a dict with a global position for each: a message with a
    lower global position than one that you have read may still be committed in another category.
    """

    queries: tuple[Query, ...]
    after: dict[str, int] = field(hash=False)
    """For each category, the global position after which no message may match."""

    def __init__(self, queries: Query | Iterable[Query], after: int | Mapping[str, int] = 0) -> None:
        known = _checked(queries)
        categories = dict.fromkeys(query.category for query in known)
        if isinstance(after, Mapping):
            if after.keys() != categories.keys():
                raise InvalidArgument(
                    "after", after, f"must have the categories of the queries: {', '.join(categories)}"
                )
            positions = {each: _position(f"after[{each!r}]", after[each]) for each in categories}
        else:
            position = _position("after", after)
            if position and len(categories) > 1:
                raise InvalidArgument(
                    "after", after, f"must be a dict with a position for each: {', '.join(categories)}"
                )
            positions = dict.fromkeys(categories, position)
        object.__setattr__(self, "queries", known)
        object.__setattr__(self, "after", positions)


class QueryResult(list[Message[Any]]):
    """The messages that match, sorted by global position: a list, with the condition for a decision made on them."""

    condition: AppendCondition
    """None of the queries matches a message that came after these. Pass it to the write that the decision leads to."""

    def __init__(self, messages: Iterable[Message[Any]], condition: AppendCondition) -> None:
        super().__init__(messages)
        self.condition = condition


def _checked(queries: Query | Iterable[Query]) -> tuple[Query, ...]:
    """One query, or several of which a message must match one."""
    known = (queries,) if isinstance(queries, Query) else tuple(_several("queries", queries))
    if not known:
        raise InvalidArgument("queries", queries, "must not be empty: pass at least one Query")
    if len(known) > MAX_QUERIES:
        raise InvalidArgument("queries", len(known), f"must be at most {MAX_QUERIES}: a query may have many types")
    for number, each in enumerate(known):
        if not isinstance(each, Query):
            raise InvalidArgument(
                f"queries[{number}]", each, 'must be a Query, such as Query("course", tags=["course:1"])'
            )
    return known


def _category(value: object) -> str:
    if value == arguments.ALL:
        reason = "must be a category, whose lock a condition is checked with: pass a query for each category"
        raise InvalidArgument("category", value, reason)
    return arguments.category("category", value)


def _position(argument: str, value: object) -> int:
    # The one after it must be a bigint too.
    return arguments.integer(argument, value, minimum=0, maximum=2**63 - 2)


def _several(argument: str, values: Any) -> Iterable[Any]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InvalidArgument(argument, values, "must be a list, or something else to iterate over, also for one item")
    return values
