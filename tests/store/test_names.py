"""Names: of streams without an id, of the greatest length, and of enumerations; on each driver."""

from __future__ import annotations

import random
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, select, text

from messagedb_sa import (
    NO_STREAM,
    Consumer,
    InvalidArgument,
    MessageTypes,
    NewMessage,
    Store,
    StreamWrite,
    functions,
    stream_name,
)
from messagedb_sa import _arguments as arguments
from messagedb_sa._arguments import MAX_INDEXED_BYTES

from ..support import DRIVERS, consumer_on, numbers, on

# Streams without an id


def test_a_stream_without_an_id_is_written_and_its_end_is_read(each_store: Store) -> None:
    assert each_store.stream_version("user_stream") == NO_STREAM
    assert each_store.read_last_message("user_stream") is None
    each_store.write("user_stream", "Registered", {"n": 0}, expected_version=NO_STREAM)
    each_store.write_batch("user_stream", [("Renamed", {"n": 1})], each_store.stream_version("user_stream"))
    each_store.write_streams(
        [("user_stream", [("Renamed", {"n": 2})], 1), ("user_stream-1", [("Registered", {"n": 3})])]
    )
    assert each_store.stream_version("user_stream") == 2
    last, first = each_store.read_last_message("user_stream"), each_store.read_last_message("user_stream", "Registered")
    assert numbers([last, first]) == [2, 0]


def test_a_stream_without_an_id_is_read_as_its_category(each_store: Store) -> None:
    for n, name in enumerate(["user_stream", "user_stream-1", "user_stream"]):
        each_store.write(name, "Registered", {"n": n})
    assert numbers(each_store.read("user_stream")) == numbers(each_store.read_category("user_stream")) == [0, 1, 2]
    assert numbers(each_store.iter_category("user_stream")) == [0, 1, 2]
    with pytest.raises(InvalidArgument, match="to read a stream without an id, read its category"):
        each_store.read_stream("user_stream")


# Long names


def incompressible(size: int) -> str:
    """PostgreSQL compresses what it indexes, but not this."""
    return "".join(random.Random(size).choices("".join(map(chr, range(46, 127))), k=size))


@pytest.fixture
def longest() -> str:
    name = f"{incompressible(1298)}-{incompressible(1301)}"
    assert len(name.encode()) == MAX_INDEXED_BYTES
    return name


def test_the_longest_names_are_written_and_read(each_store: Store, longest: str) -> None:
    category = longest.partition("-")[0]
    metadata = {"correlationStreamName": f"{incompressible(1302)}-{'x' * 10_000}"}
    each_store.write(longest, "T", {"n": 0}, metadata)
    each_store.write_batch(longest, [("T", {"n": 1}, metadata)])
    each_store.write_streams([(longest, [("T", {"n": 2}, metadata)]), (incompressible(MAX_INDEXED_BYTES), [("T", {})])])
    assert numbers(each_store.read(longest)) == [0, 1, 2]
    assert numbers(each_store.read_category(category, correlation=incompressible(1302))) == [0, 1, 2]
    assert each_store.stream_version(incompressible(MAX_INDEXED_BYTES)) == 0


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_name_that_is_too_long_leaves_the_callers_transaction_usable(
    store: Store, messagedb_url: str, driver: str, longest: str
) -> None:
    def write(connection: Connection) -> None:
        joined = Store(connection)
        for write in (
            lambda: joined.write(f"{longest}x", "T", {}),
            lambda: joined.write_batch(f"{longest}x", [("T", {})], NO_STREAM),
            lambda: joined.write_streams([(f"{longest}x", [("T", {})], NO_STREAM)]),
            lambda: joined.write("a-1", "T", {}, {"correlationStreamName": incompressible(MAX_INDEXED_BYTES)}),
        ):
            with pytest.raises(InvalidArgument, match=f"at most {MAX_INDEXED_BYTES} bytes"):
                write()
        joined.write(longest, "T", {}, expected_version=NO_STREAM)

    on(driver, messagedb_url, write)
    assert [message.stream_name for message in store.read("$all")] == [longest]


def test_the_docstring_of_write_has_the_limit() -> None:
    assert f"at most {MAX_INDEXED_BYTES:,} bytes" in str(Store.write.__doc__)


def test_a_message_type_may_be_of_any_length(each_store: Store) -> None:
    # No index has it.
    type_ = incompressible(20_000)
    each_store.write("account-1", type_, {"n": 0})
    each_store.write_batch("account-1", [(type_, {"n": 1})])
    each_store.write_streams([("account-1", [(type_, {"n": 2})])])
    assert [message.type for message in each_store.read("account-1")] == [type_] * 3
    assert numbers([each_store.read_last_message("account-1", type_)]) == [2]


def test_names_that_are_too_long_to_write_can_be_asked_for(each_store: Store, longest: str) -> None:
    assert each_store.read(f"{longest}x") == each_store.read_category(9999 * "x") == []
    assert each_store.stream_version(f"{longest}x") == NO_STREAM
    assert each_store.read_category("a", correlation=9999 * "x") == []


def test_what_another_client_wrote_with_a_longer_name_is_read(each_store: Store, messagedb_url: str) -> None:
    # Compressed, it is short enough for the index.
    name = f"a-{5000 * 'x'}"
    write = select(functions.write_message(UUID(int=1), name, "T", {"n": 1}))
    on("psycopg2", messagedb_url, lambda connection: connection.execute(write))
    assert numbers(each_store.read(name)) == numbers([each_store.read_last_message(name)]) == [1]


@pytest.mark.parametrize(
    ("category", "identifier", "options", "argument"),
    [
        (2600 * "x", None, {}, "category"),
        ("a", 2590 * "x", {}, "identifier"),
        ("a", 1295 * "é", {}, "identifier"),
        ("a", 2580 * "x", {"slots": 100}, "identifier"),
        ("a", 2580 * "x", {"group_member": 0, "group_size": 100}, "identifier"),
    ],
)
def test_a_consumer_whose_positions_would_have_too_long_a_name_is_refused(
    each_store: Store, category: str, identifier: str | None, options: dict[str, Any], argument: str
) -> None:
    with pytest.raises(InvalidArgument, match="the name of the stream for its positions must have at most") as caught:
        consumer_on(each_store, category, {"T": print}, identifier, **options)
    assert caught.value.argument == argument


def test_the_longest_identifier_of_a_consumer_works(each_store: Store) -> None:
    each_store.write("a-1", "T", {"n": 1})
    identifier = incompressible(2600 - len("a:position-"))
    handled: list[Any] = []
    consumer = consumer_on(each_store, "a", {"T": handled.append}, identifier)
    consumer.run_until_caught_up()
    assert numbers(handled) == [1]
    assert [status.identifier for status in each_store.consumers("a")] == [identifier]


def test_a_message_with_metadata_that_a_store_refuses_is_parked(each_store: Store, messagedb_url: str) -> None:
    # Compressed, it is short enough for the index.
    metadata = {"correlationStreamName": 5000 * "x"}
    write = select(functions.write_message(UUID(int=1), "a-1", "T", {"n": 1}, metadata))
    on("psycopg2", messagedb_url, lambda connection: connection.execute(write))

    def fail(message: Any) -> None:
        raise RuntimeError("cannot")

    consumer_on(each_store, "a", {"T": fail}, on_failure="park").run_until_caught_up()
    assert numbers(each_store.read("a:dead")) == [1]


# Names that are members of an enumeration of strings


class Name(str, Enum):
    """With the old format, and a hash that is not that of the value."""

    ONE = "one"
    STREAM = "one-1"
    TYPE = "Happened"
    ALL = "$all"


class Shouting(str):
    """A subclass that shows, formats, compares and hashes as something else."""

    def __str__(self) -> str:
        return self.upper()

    def __format__(self, _: str) -> str:
        return self.upper()

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 5


def shouted(name: Name) -> Any:
    return Shouting(name.value)


@pytest.fixture(params=[lambda name: name, shouted], ids=["enumeration", "subclass"])
def named(request: pytest.FixtureRequest) -> Any:
    return request.param


def is_plain(*values: object) -> bool:
    return all(type(value) is str for value in values)


def test_all_writes_and_reads_take_them(each_store: Store, named: Any) -> None:
    one, stream, type_, all_ = map(named, (Name.ONE, Name.STREAM, Name.TYPE, Name.ALL))
    correlated = {"correlationStreamName": one}
    assert each_store.write(stream, type_, {"n": 0}, correlated, NO_STREAM) == 0
    assert each_store.write_batch(stream, [(type_, {"n": 1}, correlated), NewMessage(type_, {"n": 2})], 0) == 2
    written = each_store.write_streams([StreamWrite(stream, [(type_, {"n": 3})], 2), (one, [(type_, {"n": 4})])])
    assert written == {"one-1": 3, "one": 0}
    assert is_plain(*written)
    assert numbers(each_store.read_stream(stream)) == numbers(each_store.iter_stream(stream)) == [0, 1, 2, 3]
    assert numbers(each_store.read(stream)) == [0, 1, 2, 3]
    assert numbers(each_store.read(one)) == numbers(each_store.iter_category(one)) == [0, 1, 2, 3, 4]
    assert numbers(each_store.read_category(one, correlation=one)) == [0, 1]
    assert numbers(each_store.read(all_)) == [0, 1, 2, 3, 4]
    assert numbers([each_store.read_last_message(stream, type_)]) == [3]
    assert each_store.stream_version(stream) == 3
    assert each_store.stream_identifiers(one) == ["1"]
    assert each_store.consumers(one) == []
    own = text("SELECT * FROM message_store.get_stream_messages(:stream_name)")
    assert numbers(each_store.read(stream, own)) == [0, 1, 2, 3]
    assert {message.type for message in each_store.read("$all")} == {"Happened"}


def test_an_error_has_the_value(each_store: Store, named: Any) -> None:
    for write in (
        lambda: each_store.write(named(Name.STREAM), "T", {}, expected_version=7),
        lambda: each_store.write_streams([(named(Name.STREAM), [("T", {})], 7)]),
    ):
        with pytest.raises(Exception, match="stream 'one-1' is at version -1, expected 7") as caught:
            write()
        assert is_plain(caught.value.stream_name)  # type: ignore[attr-defined]


def test_a_caller_who_joined_a_transaction_gets_them_written(store: Store, messagedb_url: str, named: Any) -> None:
    for driver in DRIVERS:
        on(
            driver,
            messagedb_url,
            lambda connection: Store(connection).write(named(Name.STREAM), named(Name.TYPE), {}, None, NO_STREAM),
        )
        (message,) = store.read("one-1")
        assert message.type == "Happened"
        on(driver, messagedb_url, lambda connection: connection.execute(text("TRUNCATE message_store.messages")))


def test_combined_writes_take_them(messagedb_url: str, store: Store, named: Any) -> None:
    combining = Store(store.engine, combine_writes=True)
    assert combining.write(named(Name.STREAM), named(Name.TYPE), {}) == 0
    assert store.stream_version("one-1") == 0


@pytest.mark.parametrize("driver", DRIVERS)
def test_expressions_take_them(store: Store, messagedb_url: str, named: Any, driver: str) -> None:
    stream, type_ = named(Name.STREAM), named(Name.TYPE)

    def write(connection: Connection) -> list[Any]:
        connection.execute(select(functions.write_message(UUID(int=1), stream, type_, {})))
        connection.execute(select(functions.write_messages([UUID(int=2)], stream, [type_], [{}])))
        return [
            connection.scalar(select(expression))
            for expression in (functions.category(stream), functions.id(stream), functions.stream_version(stream))
        ]

    assert on(driver, messagedb_url, write) == ["one", "1", 1]
    assert [message.type for message in store.read("one-1")] == ["Happened"] * 2


def test_the_parts_of_a_name_are_plain(named: Any) -> None:
    one, stream = named(Name.ONE), named(Name.STREAM)
    parts = stream_name.category(one), stream_name.category(stream), stream_name.id(stream)
    assert parts == ("one", "one", "1")
    assert is_plain(*parts, stream_name.cardinal_id(stream))
    assert stream_name.hash_64(one) == stream_name.hash_64("one")


def test_consumers_take_them(each_store: Store, named: Any) -> None:
    one, stream, type_ = map(named, (Name.ONE, Name.STREAM, Name.TYPE))
    each_store.write("one-1", "Happened", {"n": 1}, {"correlationStreamName": "one-2"})
    each_store.write("one-1", "Other", {"n": 2}, {"correlationStreamName": "one-2"})
    handled: list[Any] = []
    consumer = consumer_on(each_store, one, {type_: handled.append}, stream, correlation=one)
    consumer.run_until_caught_up()
    assert numbers(handled) == [1]
    (status,) = each_store.consumers("one")
    assert (status.category, status.identifier) == ("one", "one-1")
    assert each_store.stream_version("one:position-one-1") >= 0


def test_a_consumer_of_all_takes_them(store: Store, named: Any) -> None:
    store.write("one-1", "Happened", {"n": 1})
    handled: list[Any] = []
    Consumer(store, named(Name.ALL), handled.append).run_until_caught_up()
    assert numbers(handled) == [1]


def test_message_types_take_them(store: Store, named: Any) -> None:
    types = MessageTypes()

    class Happened:
        pass

    types.register(Happened, name=named(Name.TYPE), encode=lambda _: {}, decode=lambda _: Happened())
    assert is_plain(types.name_of(Happened))
    typed = Store(store.engine, types=types)
    typed.write(named(Name.STREAM), Happened())
    assert isinstance(typed.read("one-1")[0].data, Happened)


@given(
    st.none()
    | st.lists(st.text())
    | st.fixed_dictionaries(
        {},
        optional={
            "by": st.text(max_size=2),
            "tags": st.lists(st.text(max_size=2)) | st.text(max_size=2),
            "correlationStreamName": st.none()
            | st.integers()
            | st.sampled_from(["transfer-1", 600 * "x", 650 * "𝄞", 2590 * "x", 2600 * "x", 1300 * "é"]),
        },
    ),
    st.sampled_from(["account-1", 20 * "é" + "-1"]),
)
def test_metadata_that_is_not_examined_would_pass(metadata: Any, name: str) -> None:
    """Most metadata of a batch is not examined for what PostgreSQL cannot index."""
    if arguments.is_plain_metadata(metadata, name):
        assert arguments.metadata_to_write("metadata", metadata, name) is metadata
