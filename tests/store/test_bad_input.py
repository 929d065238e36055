"""Bad input: refused before anything is sent, with an error that names the argument and the value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from decimal import Decimal
from enum import IntEnum
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, event, select

from messagedb_sa import (
    InvalidArgument,
    Message,
    MessageDBError,
    NewMessage,
    Store,
    StreamWrite,
    WrongExpectedVersion,
)

NAN = float("nan")
cyclic: list[Any] = []
cyclic.append(cyclic)
READ: Message = Message(
    "3f1e2c7a-8d9b-4c6e-a5f4-1b2c3d4e5f60", "a-1", "T", 0, 1, {}, None, datetime(2026, 1, 1, tzinfo=timezone.utc)
)


def generate() -> Iterator[Any]:
    yield "T", {}


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
    (lambda s: s.write(None, "T", {}), "stream_name", None, "must be a string"),  # type: ignore[call-overload]
    (lambda s: s.write("a-\0", "T", {}), "stream_name", "a-\0", "NUL"),
    (lambda s: s.write("a-\ud800", "T", {}), "stream_name", "a-\ud800", "surrogate"),
    (lambda s: s.write("a-1", "", {}), "message_type", "", "empty"),
    (lambda s: s.write("a-1", 5, {}), "message_type", 5, "must be a string"),  # type: ignore[call-overload]
    (lambda s: s.read_stream("a"), "stream_name", "a", "must be a stream name"),
    (lambda s: s.iter_stream("a"), "stream_name", "a", "must be a stream name"),
    (lambda s: s.read_last_message(""), "stream_name", "", "empty"),
    (lambda s: s.stream_version(5), "stream_name", 5, "must be a string"),  # type: ignore[arg-type]
    (lambda s: s.read_category("a-1"), "category_name", "a-1", "must be a category"),
    (lambda s: s.iter_category("a-1"), "category_name", "a-1", "must be a category"),
    (lambda s: s.stream_identifiers("a-1"), "category_name", "a-1", "must be a category"),
    (lambda s: s.read_category("a", correlation="b-1"), "correlation", "b-1", "must be a category"),
    (lambda s: s.read_last_message("a-1", ""), "message_type", "", "empty"),
    (lambda s: s.read(""), "stream_name", "", "empty"),
    # what PostgreSQL cannot index
    (lambda s: s.write("a-" + 2599 * "x", "T", {}), "stream_name", ..., "at most 2600 bytes in UTF-8"),
    (lambda s: s.write("a-" + 1300 * "é", "T", {}), "stream_name", ..., "got 2602"),
    (lambda s: s.write_batch(2601 * "x", [("T", {})]), "stream_name", ..., "at most 2600 bytes"),
    (lambda s: s.write_streams([("a-1", [("T", {})]), (651 * "𝄞", [])]), "writes[1].stream_name", ..., "got 2604"),
    (lambda s: s.write("a-1", "T", {}, {"correlationStreamName": 2600 * "x"}), "metadata", ..., "together must"),
    (lambda s: s.write(1300 * "é", "T", {}, {"correlationStreamName": "x-1"}), "metadata", ..., "got 2601"),
    (lambda s: s.write_batch("a", [("T", 1, {"correlationStreamName": 999 * "漢"})]), "messages[0].metadata", ..., ""),
    # metadata
    (lambda s: s.write("a-1", "T", {}, 7), "metadata", 7, "pass a version as expected_version="),  # type: ignore[call-overload]
    (lambda s: s.write("a-1", "T", {}, -1), "metadata", -1, "expected_version="),  # type: ignore[call-overload]
    (lambda s: s.write("a-1", "T", {}, False), "metadata", False, "must be a dict or None"),  # type: ignore[call-overload]
    (lambda s: s.write("a-1", "T", {}, "by me"), "metadata", "by me", "must be a dict or None"),  # type: ignore[call-overload]
    (lambda s: s.write("a-1", "T", {}, UUID(int=1)), "metadata", UUID(int=1), "an id as id="),  # type: ignore[call-overload]
    (lambda s: s.write("a-1", "T", {}, [("by", "me")]), "metadata", ..., "must be a dict or None"),  # type: ignore[call-overload]
    (lambda s: s.write("a-1", "T", {}, {"correlationStreamName": 5}), "metadata", ..., "must have a string as"),
    (lambda s: s.write_batch("a-1", [("T", 1, {"correlationStreamName": 5})]), "messages[0].metadata", ..., "a string"),
    (lambda s: s.write_batch("a-1", [("T", 1, {"tags": "vip"})]), "messages[0].metadata", ..., "list of texts as tags"),
    (lambda s: s.write_batch("a-1", [("T", {}), ("T", {}, 7)]), "messages[1].metadata", 7, "must be a dict or None"),  # type: ignore[list-item]
    (lambda s: s.write_batch("a-1", [NewMessage("T", {}, [])]), "messages[0].metadata", [], "must be a dict or None"),  # type: ignore[arg-type]
    (lambda s: s.write_streams([("a-1", [("T", {}, 7)])]), "writes[0].messages[0].metadata", 7, "dict or None"),  # type: ignore[list-item]
    # numbers
    (lambda s: s.write("a-1", "T", {}, None, 1.0), "expected_version", 1.0, "must be an integer"),  # type: ignore[call-overload]
    (lambda s: s.write("a-1", "T", {}, None, Decimal(1)), "expected_version", Decimal(1), "must be an integer"),  # type: ignore[call-overload]
    (lambda s: s.write_streams([("a-1", [("T", {})], True)]), "writes[0].expected_version", True, "must be an integer"),
    (lambda s: s.read_stream("a-1", True), "position", True, "must be an integer"),
    (lambda s: s.read_stream("a-1", -1), "position", -1, "between 0 and"),
    (lambda s: s.read_category("a", -1), "position", -1, "between 0 and"),
    (lambda s: s.read("$all", position=-1), "position", -1, "between 0 and"),
    (lambda s: s.iter_stream("a-1", -1), "position", -1, "between 0 and"),
    (lambda s: s.read_category("a", 0, 1, True, 2), "consumer_group_member", True, "must be an integer"),
    (lambda s: s.read("$all", allow_holes=True, settle_seconds=2), "settle_seconds", 2, "has no effect with"),
    (lambda s: s.iter_all(allow_holes=True, settle_seconds=0), "settle_seconds", 0, "has no effect with allow_holes"),
    (lambda s: s.write("a-1", "T", {}, None, -2), "expected_version", -2, "between -1 and"),
    (lambda s: s.write("a-1", "T", {}, None, 2**63), "expected_version", 2**63, "between -1 and"),
    (lambda s: s.write("a-1", "T", {}, None, "1"), "expected_version", "1", "must be an integer"),  # type: ignore[call-overload]
    (lambda s: s.write("a-1", "T", {}, None, True), "expected_version", True, "must be an integer"),
    (lambda s: s.write_batch("a-1", [("T", {})], -2), "expected_version", -2, "between -1 and"),
    (lambda s: s.read_stream("a-1", 1.5), "position", 1.5, "must be an integer"),  # type: ignore[arg-type]
    (lambda s: s.read_stream("a-1", 2**63), "position", 2**63, "between"),
    (lambda s: s.read_stream("a-1", 0, -2), "no_of_messages", -2, "between -1 and"),
    (lambda s: s.read_category("a", 0, -2), "no_of_messages", -2, "between -1 and"),
    (lambda s: s.read("$all", None, 0, -2), "no_of_messages", -2, "between -1 and"),
    (lambda s: s.iter_all("1"), "position", "1", "must be an integer"),  # type: ignore[arg-type]
    (lambda s: s.iter_all(batch_size=0), "batch_size", 0, "between 1 and"),
    (lambda s: s.read("$all", settle_seconds=-1), "settle_seconds", -1, "0 or more"),
    (lambda s: s.iter_all(settle_seconds=NAN), "settle_seconds", NAN, "finite"),
    (lambda s: s.iter_all(settle_seconds=10**400), "settle_seconds", 10**400, "finite"),
    (lambda s: s.read("$all", settle_seconds="1"), "settle_seconds", "1", "must be a number"),  # type: ignore[arg-type]
    (lambda s: s.read("$all", settle_seconds=True), "settle_seconds", True, "must be a number"),
    (lambda s: s.read("$all", allow_holes="no"), "allow_holes", "no", "True or False"),  # type: ignore[arg-type]
    (lambda s: s.read("a", allow_holes=True), "allow_holes", True, "without sql"),
    (lambda s: s.read("a-1", settle_seconds=2), "settle_seconds", 2, "without sql"),
    (lambda s: s.read("$all", "SELECT 1", allow_holes=True), "allow_holes", True, "without sql"),
    (lambda s: s.read("a-1", None, 0, None), "no_of_messages", None, "must be an integer"),  # type: ignore[arg-type]
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
    (lambda s: s.read("a-1", None, 0, 1, 0, 2), "consumer_group_member", 0, "reads of a category"),
    (lambda s: s.read("$all", None, 0, 1, None, 2), "consumer_group_size", 2, "reads of a category"),
    # ids
    (lambda s: s.write("a-1", "T", {}, id="1"), "id", "1", "must be a UUID"),
    (lambda s: s.write("a-1", "T", {}, id=1), "id", 1, "must be a UUID"),  # type: ignore[call-overload]
    # what JSON or PostgreSQL cannot hold
    (lambda s: s.write("a-1", "T", NAN), "data", NAN, "must be a finite number, not nan"),
    (lambda s: s.write("a-1", "T", {"a": [1, -float("inf")]}), "data", ..., "[1]: must be a finite number"),
    (lambda s: s.write("a-1", "T", {"a": "b\0c"}), "data", ..., "at ['a']: must not contain a NUL"),
    (lambda s: s.write("a-1", "T", {"a\0": 1}), "data", ..., "the key 'a\\x00' must not contain a NUL"),
    (lambda s: s.write("a-1", "T", {"a": "\udfff"}), "data", ..., "half of a surrogate pair"),
    (lambda s: s.write("a-1", "T", {1: 2}), "data", {1: 2}, "the key 1 must be a string"),
    (lambda s: s.write("a-1", "T", [{"a": {None: 2}}]), "data", ..., "at [0]['a']: the key None must be a string"),
    (lambda s: s.write("a-1", "T", {"a": {1, 2}}), "data", ..., "at ['a']: must be a value that JSON"),
    (lambda s: s.write("a-1", "T", {"a": uuid4()}), "data", ..., "must be a value that JSON can represent"),
    (lambda s: s.write("a-1", "T", {"a": Decimal("1.5")}), "data", ..., "not a Decimal"),
    (lambda s: s.write("a-1", "T", datetime(2026, 1, 1, tzinfo=timezone.utc)), "data", ..., "must be a value that"),
    (lambda s: s.write("a-1", "T", b"bytes"), "data", b"bytes", "not a bytes"),
    (lambda s: s.write("a-1", "T", cyclic), "data", ..., "nested too deeply, or contain itself"),
    (lambda s: s.write("a-1", "T", {}, {"a": NAN}), "metadata", ..., "must be a finite number"),
    # batches
    (lambda s: s.write_batch("a-1", []), "messages", [], "empty"),
    (lambda s: s.write_batch("a-1", iter(())), "messages", ..., "empty"),
    (lambda s: s.write_batch("a-1", None), "messages", None, "must be a list"),  # type: ignore[arg-type]
    (lambda s: s.write_batch("a-1", "T"), "messages", "T", "must be a list"),  # type: ignore[arg-type]
    (lambda s: s.write_batch("a-1", ("T", {})), "messages", ("T", {}), "also for one item"),  # type: ignore[arg-type]
    (lambda s: s.write_batch("a-1", NewMessage("T", {})), "messages", ..., "also for one item"),  # type: ignore[arg-type]
    (lambda s: s.write_batch("a-1", READ), "messages", READ, "also for one item"),  # type: ignore[arg-type]
    (lambda s: s.write_batch("a-1", {"T": {}}), "messages", {"T": {}}, "must be a list, not a dict"),  # type: ignore[dict-item]
    (lambda s: s.write_batch("a-1", generate), "messages", generate, "must be a list"),  # type: ignore[arg-type]
    (lambda s: s.write_batch("a-1", [{"type": "T"}]), "messages[0]", {"type": "T"}, "NewMessage(**message)"),  # type: ignore[list-item]
    (lambda s: s.write_batch("a-1", [READ]), "messages[0]", READ, "NewMessage(message.type, message.data)"),  # type: ignore[list-item]
    (lambda s: s.write_streams({"a-1": [("T", {})]}), "writes", ..., "must be a list, not a dict"),  # type: ignore[dict-item]
    (lambda s: s.write_streams(("a-1", [("T", {})])), "writes", ..., "also for one item"),  # type: ignore[arg-type]
    (lambda s: s.write_streams(StreamWrite("a-1", [("T", {})])), "writes", ..., "also for one item"),  # type: ignore[arg-type]
    (lambda s: s.write_streams([("a-1", ("T", {}))]), "writes[0].messages", ("T", {}), "also for one item"),  # type: ignore[list-item]
    (lambda s: s.write("a-1", NewMessage("T", {})), "message_type", ..., "write_batch takes a list of messages"),
    (lambda s: s.write("a-1", READ), "message_type", READ, "write_batch takes a list of messages"),
    (lambda s: s.write_batch("", [("T", {})]), "stream_name", "", "empty"),
    (lambda s: s.write_batch("a-1", [("T", {}), ("T",)]), "messages[1]", ("T",), "(type, data)"),  # type: ignore[list-item]
    (lambda s: s.write_batch("a-1", ["ab"]), "messages[0]", "ab", "(type, data)"),  # type: ignore[list-item]
    (lambda s: s.write_batch("a-1", [("T", {}, {}, uuid4())]), "messages[0]", ..., "NewMessage"),  # type: ignore[list-item]
    (lambda s: s.write_batch("a-1", [("T", {}), (None, {})]), "messages[1].type", None, "must be a string"),  # type: ignore[list-item]
    (lambda s: s.write_batch("a-1", [("T", {}), ("T", {"a": NAN})]), "messages[1].data", ..., "must be a finite"),
    (lambda s: s.write_batch("a-1", [("T", {}, {2: 1})]), "messages[0].metadata", {2: 1}, "the key 2"),  # type: ignore[list-item]
    (lambda s: s.write_batch("a-1", [NewMessage("T", {}, id="x")]), "messages[0].id", "x", "must be a UUID"),
    # SQL of the caller's own
    (lambda s: s.read("a", "SELECT %(stream)s"), "sql", ..., "may use the parameters stream_name, position"),
    (lambda s: s.read("a", ""), "sql", "", "empty"),
    (lambda s: s.read("a", 5), "sql", 5, "must be a query"),  # type: ignore[arg-type]
    (lambda s: s.read("a", select()), "sql", ..., "missing: id, stream_name"),
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
    with pytest.raises(InvalidArgument, match=re.escape("category_name='a-1': must be a category")):
        unsent.read_category("a-1")
    with pytest.raises(InvalidArgument) as caught:
        unsent.write("a-1", "T", {"a": "x" * 100_000 + "\0"})
    assert len(str(caught.value)) < 500
    assert "must not contain a NUL character" in str(caught.value)


@pytest.mark.parametrize("bad", [None, "postgresql://", 5])
def test_a_store_needs_an_engine(bad: Any) -> None:
    with pytest.raises(InvalidArgument, match="bind="):
        Store(bad)


def test_a_switch_of_a_store_is_true_or_false() -> None:
    with pytest.raises(InvalidArgument, match="combine_writes='no': must be True or False"):
        Store.from_url("postgresql://", combine_writes="no")  # type: ignore[arg-type]


class Two(IntEnum):
    TWO = 2


class Index:
    """As numpy's integers are."""

    def __init__(self, value: int = 2) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def test_no_limit_is_what_python_takes_as_the_index_minus_one(each_store: Store) -> None:
    each_store.write("account-1", "Deposited", {})
    for name in ("$all", "account", "account-1"):
        assert len(each_store.read(name, no_of_messages=Index(-1))) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("two", [Two.TWO, Index()])
def test_what_python_takes_as_an_index_is_an_integer(each_store: Store, two: Any) -> None:
    for n in range(3):
        each_store.write("account-1", "Deposited", {"n": n})
    assert len(each_store.read_stream("account-1", two, two)) == 1
    assert each_store.write("account-1", "Deposited", {}, expected_version=two) == 3
    with pytest.raises(WrongExpectedVersion) as caught:
        each_store.write("account-1", "Deposited", {}, expected_version=two)
    assert type(caught.value.expected_version) is int


def test_a_store_needs_postgresql() -> None:
    with pytest.raises(InvalidArgument, match="must be on PostgreSQL"):
        Store(create_engine("sqlite://"))
