"""Bad input: refused before anything is sent, with an error that names the argument and the value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, event, select

from messagedb_sa import InvalidArgument, MessageDBError, NewMessage, Store

NAN = float("nan")
cyclic: list[Any] = []
cyclic.append(cyclic)


@pytest.fixture
def unsent(each_store: Store) -> Iterator[Store]:
    """A store whose engine must send nothing, and lend no connection, for the length of the test."""
    sent: list[str] = []

    def note(*_: Any) -> None:
        sent.append("a connection was taken")

    store = each_store
    event.listen(store.engine.pool, "checkout", note)
    yield store
    event.remove(store.engine.pool, "checkout", note)
    assert sent == []
    assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


CASES: list[tuple[Callable[[Store], Any], str, object, str]] = [
    # names
    (lambda s: s.write("", "T", {}), "stream_name", "", "empty"),
    (lambda s: s.write(None, "T", {}), "stream_name", None, "no text"),  # type: ignore[call-overload]
    (lambda s: s.write("a-\0", "T", {}), "stream_name", "a-\0", "NUL"),
    (lambda s: s.write("a-\ud800", "T", {}), "stream_name", "a-\ud800", "surrogate"),
    (lambda s: s.write("a-1", "", {}), "message_type", "", "empty"),
    (lambda s: s.write("a-1", 5, {}), "message_type", 5, "no text"),  # type: ignore[call-overload]
    (lambda s: s.read_stream("a"), "stream_name", "a", "is a category"),
    (lambda s: s.iter_stream("a"), "stream_name", "a", "is a category"),
    (lambda s: s.read_last_message("a"), "stream_name", "a", "is a category"),
    (lambda s: s.stream_version("a"), "stream_name", "a", "is a category"),
    (lambda s: s.read_category("a-1"), "category_name", "a-1", "is a stream name"),
    (lambda s: s.iter_category("a-1"), "category_name", "a-1", "is a stream name"),
    (lambda s: s.stream_identifiers("a-1"), "category_name", "a-1", "is a stream name"),
    (lambda s: s.read_category("a", correlation="b-1"), "correlation", "b-1", "is a stream name"),
    (lambda s: s.read_last_message("a-1", ""), "message_type", "", "empty"),
    (lambda s: s.read(""), "stream_name", "", "empty"),
    # numbers
    (lambda s: s.write("a-1", "T", {}, None, -2), "expected_version", -2, "between -1 and"),
    (lambda s: s.write("a-1", "T", {}, None, 2**63), "expected_version", 2**63, "between -1 and"),
    (lambda s: s.write("a-1", "T", {}, None, "1"), "expected_version", "1", "no integer"),  # type: ignore[call-overload]
    (lambda s: s.write("a-1", "T", {}, None, True), "expected_version", True, "no integer"),
    (lambda s: s.write_batch("a-1", [("T", {})], -2), "expected_version", -2, "between -1 and"),
    (lambda s: s.read_stream("a-1", 1.5), "position", 1.5, "no integer"),  # type: ignore[arg-type]
    (lambda s: s.read_stream("a-1", 2**63), "position", 2**63, "between"),
    (lambda s: s.read_stream("a-1", 0, -2), "no_of_messages", -2, "between -1 and"),
    (lambda s: s.read_category("a", 0, -2), "no_of_messages", -2, "between -1 and"),
    (lambda s: s.read("$all", None, 0, -2), "no_of_messages", -2, "between -1 and"),
    (lambda s: s.iter_all("1"), "position", "1", "no integer"),  # type: ignore[arg-type]
    (lambda s: s.iter_all(batch_size=0), "batch_size", 0, "between 1 and"),
    (lambda s: s.read("$all", settle_seconds=-1), "settle_seconds", -1, "from 0 on"),
    (lambda s: s.iter_all(settle_seconds=NAN), "settle_seconds", NAN, "finite"),
    (lambda s: s.iter_all(settle_seconds=10**400), "settle_seconds", 10**400, "finite"),
    (lambda s: s.read("$all", settle_seconds="1"), "settle_seconds", "1", "no number"),  # type: ignore[arg-type]
    (lambda s: s.read("$all", settle_seconds=True), "settle_seconds", True, "no number"),
    (lambda s: s.read("$all", allow_holes="no"), "allow_holes", "no", "neither"),  # type: ignore[arg-type]
    (lambda s: s.read("a", allow_holes=True), "allow_holes", True, "without SQL"),
    (lambda s: s.read("a-1", settle_seconds=2), "settle_seconds", 2, "without SQL"),
    (lambda s: s.read("$all", "SELECT 1", allow_holes=True), "allow_holes", True, "without SQL"),
    (lambda s: s.read("a-1", None, 0, None), "no_of_messages", None, "no integer"),  # type: ignore[arg-type]
    (lambda s: s.iter_stream("a-1", batch_size=0), "batch_size", 0, "between 1 and"),
    (lambda s: s.iter_category("a", batch_size=-1), "batch_size", -1, "between 1 and"),
    # consumer groups
    (lambda s: s.read_category("a", 0, 1, 0), "consumer_group_size", None, "consumer_group_member=0"),
    (lambda s: s.read_category("a", 0, 1, None, 2), "consumer_group_member", None, "consumer_group_size=2"),
    (lambda s: s.read_category("a", 0, 1, -1, 2), "consumer_group_member", -1, "between 0 and 1"),
    (lambda s: s.read_category("a", 0, 1, 2, 2), "consumer_group_member", 2, "between 0 and 1"),
    (lambda s: s.read_category("a", 0, 1, 0, 0), "consumer_group_size", 0, "between 1 and 32767"),
    (lambda s: s.read_category("a", 0, 1, 0, 32768), "consumer_group_size", 32768, "between 1 and 32767"),
    (lambda s: s.iter_category("a", 0, 2, 2), "consumer_group_member", 2, "between 0 and 1"),
    (lambda s: s.read("a", None, 0, 1, 2, 2), "consumer_group_member", 2, "between 0 and 1"),
    (lambda s: s.read("a-1", None, 0, 1, 0, 2), "consumer_group_member", 0, "reads a category"),
    (lambda s: s.read("$all", None, 0, 1, None, 2), "consumer_group_size", 2, "reads a category"),
    # ids
    (lambda s: s.write("a-1", "T", {}, id="1"), "id", "1", "no UUID"),
    (lambda s: s.write("a-1", "T", {}, id=1), "id", 1, "no UUID"),  # type: ignore[call-overload]
    # what JSON or PostgreSQL cannot hold
    (lambda s: s.write("a-1", "T", NAN), "data", NAN, "nan is no JSON number"),
    (lambda s: s.write("a-1", "T", {"a": [1, -float("inf")]}), "data", ..., "at ['a'][1]: -inf is no JSON number"),
    (lambda s: s.write("a-1", "T", {"a": "b\0c"}), "data", ..., "at ['a']: holds a NUL"),
    (lambda s: s.write("a-1", "T", {"a\0": 1}), "data", ..., "the key 'a\\x00' holds a NUL"),
    (lambda s: s.write("a-1", "T", {"a": "\udfff"}), "data", ..., "at ['a']: holds half of a surrogate pair"),
    (lambda s: s.write("a-1", "T", {1: 2}), "data", {1: 2}, "the key 1 is no text"),
    (lambda s: s.write("a-1", "T", [{"a": {None: 2}}]), "data", ..., "at [0]['a']: the key None is no text"),
    (lambda s: s.write("a-1", "T", {"a": {1, 2}}), "data", ..., "at ['a']: a set has no JSON form"),
    (lambda s: s.write("a-1", "T", {"a": uuid4()}), "data", ..., "has no JSON form"),
    (lambda s: s.write("a-1", "T", {"a": Decimal("1.5")}), "data", ..., "a Decimal has no JSON form"),
    (lambda s: s.write("a-1", "T", datetime(2026, 1, 1, tzinfo=timezone.utc)), "data", ..., "has no JSON form"),
    (lambda s: s.write("a-1", "T", b"bytes"), "data", b"bytes", "a bytes has no JSON form"),
    (lambda s: s.write("a-1", "T", cyclic), "data", ..., "nested too deeply, or holds itself"),
    (lambda s: s.write("a-1", "T", {}, {"a": NAN}), "metadata", ..., "at ['a']: nan"),
    # batches
    (lambda s: s.write_batch("a-1", []), "messages", [], "empty"),
    (lambda s: s.write_batch("a-1", iter(())), "messages", ..., "empty"),
    (lambda s: s.write_batch("a-1", None), "messages", None, "no list"),  # type: ignore[arg-type]
    (lambda s: s.write_batch("", [("T", {})]), "stream_name", "", "empty"),
    (lambda s: s.write_batch("a-1", [("T", {}), ("T",)]), "messages[1]", ("T",), "(type, data)"),  # type: ignore[list-item]
    (lambda s: s.write_batch("a-1", ["ab"]), "messages[0]", "ab", "(type, data)"),  # type: ignore[list-item]
    (lambda s: s.write_batch("a-1", [("T", {}, {}, uuid4())]), "messages[0]", ..., "NewMessage"),  # type: ignore[list-item]
    (lambda s: s.write_batch("a-1", [("T", {}), (None, {})]), "messages[1].type", None, "no text"),  # type: ignore[list-item]
    (lambda s: s.write_batch("a-1", [("T", {}), ("T", {"a": NAN})]), "messages[1].data", ..., "at ['a']: nan"),
    (lambda s: s.write_batch("a-1", [("T", {}, {2: 1})]), "messages[0].metadata", {2: 1}, "the key 2"),
    (lambda s: s.write_batch("a-1", [NewMessage("T", {}, id="x")]), "messages[0].id", "x", "no UUID"),
    # SQL of the caller's own
    (lambda s: s.read("a", "SELECT %(stream)s"), "sql", ..., "parameter stream is not one of stream_name, position"),
    (lambda s: s.read("a", ""), "sql", "", "empty"),
    (lambda s: s.read("a", 5), "sql", 5, "no query"),  # type: ignore[arg-type]
    (lambda s: s.read("a", select()), "sql", ..., "no column id, stream_name"),
    (lambda s: s.read("a", "SELECT 1", consumer_group_member=1), "consumer_group_size", None, "consumer_group_member"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "argument", "value", "reason"), CASES)
def test_it_is_refused_before_anything_is_sent(
    unsent: Store, call: Callable[[Store], Any], argument: str, value: object, reason: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call(unsent)
    error = caught.value
    assert isinstance(error, ValueError)
    assert isinstance(error, MessageDBError)
    assert error.argument == argument
    assert value is ... or error.value is value or error.value == value
    assert reason in error.reason
    assert str(error).startswith(f"{argument}=")


def test_the_error_shows_the_value_and_cuts_a_long_one_short(unsent: Store) -> None:
    with pytest.raises(InvalidArgument, match=re.escape("category_name='a-1': is a stream name")):
        unsent.read_category("a-1")
    with pytest.raises(InvalidArgument) as caught:
        unsent.write("a-1", "T", {"a": "x" * 100_000 + "\0"})
    assert len(str(caught.value)) < 500
    assert "holds a NUL character" in str(caught.value)


@pytest.mark.parametrize("bad", [None, "postgresql://", 5])
def test_a_store_needs_an_engine(bad: Any) -> None:
    with pytest.raises(InvalidArgument, match="bind="):
        Store(bad)


def test_a_store_needs_postgresql() -> None:
    with pytest.raises(InvalidArgument, match="not on PostgreSQL"):
        Store(create_engine("sqlite://"))
