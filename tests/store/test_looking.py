"""Looking into a store: categories, streams, activity, messages by id and metadata, and who is writing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, NullPool, create_engine, make_url, text
from sqlalchemy import insert as insert_into

from messagedb_sa import (
    Activity,
    CategorySummary,
    InvalidArgument,
    Message,
    MessageNotDecodable,
    NewMessage,
    OpenWriter,
    Store,
    StoreNotInstalled,
    StreamSummary,
    install,
    schema,
    stream_name,
)
from messagedb_sa.testing import temporary_server

from ..support import DRIVERS, NESTED, as_role, insert, nested_is_refused, numbers, on, store_on


def last_of(store: Store, name: str) -> Message:
    return store.read(name, no_of_messages=1, backwards=True)[0]


# ---- by id


def test_a_message_is_read_by_its_id(each_store: Store) -> None:
    its_id = uuid4()
    each_store.write("account-1", "Opened", {"n": 1}, id=its_id)
    (message,) = each_store.read("account-1")
    assert each_store.read_message(its_id) == each_store.read_message(str(its_id).upper()) == message
    assert each_store.read_message(uuid4()) is None


@pytest.mark.parametrize("value", [None, "", "7", 7, "account-1", "0\0"])
def test_what_is_no_id_is_refused(store: Store, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^id=.*must be a UUID"):
        store.read_message(value)


# ---- categories


def test_each_category_is_listed_with_its_messages_and_its_last_one(filled: Store) -> None:
    expected = [
        (name, number, last_of(filled, name).global_position, last_of(filled, name).time, False)
        for name, number in (("account", 10), ("account:snapshot", 1), ("accounting", 1))
    ]
    assert filled.categories() == filled.categories(exact=True) == expected
    assert all(type(each) is CategorySummary for each in filled.categories())


def test_an_empty_store_has_no_categories_streams_and_activity(each_store: Store) -> None:
    assert each_store.categories() == each_store.categories(exact=True) == []
    found: list[list[Any]] = [each_store.recent_streams(), each_store.activity(), each_store.open_writers()]
    found += [[*each_store.iter_streams("account")], [*each_store.iter_metadata({"by": "Ada"})]]
    assert found == [[]] * 5


# ---- streams


def test_the_streams_of_a_category_are_listed_with_their_last_messages(filled: Store) -> None:
    streams = [*filled.iter_streams("account")]
    assert [each.stream_name for each in streams] == ["account-1", "account-2", "account-3"]
    for stream in streams:
        last = filled.read_last_message(stream.stream_name)
        assert last is not None
        assert stream == StreamSummary(last.stream_name, last.position, last.global_position, last.time)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 1000])
def test_streams_come_in_pages_and_continue_after_any_name_of_the_category(filled: Store, batch_size: int) -> None:
    def listed(**options: Any) -> list[str]:
        return [each.stream_name for each in filled.iter_streams("account", batch_size=batch_size, **options)]

    assert listed() == ["account-1", "account-2", "account-3"]
    assert listed(after="account-1") == ["account-2", "account-3"]
    assert listed(after="account-15") == ["account-2", "account-3"]
    assert listed(after="account") == ["account-1", "account-2", "account-3"]
    assert listed(after="account-3") == []


def test_a_stream_without_an_id_is_the_first_of_its_category(store: Store) -> None:
    for name in ("account-1", "account", "account-", "accounts"):
        store.write(name, "Opened", {})
    assert [each.stream_name for each in store.iter_streams("account", batch_size=1)] == [
        "account",
        "account-",
        "account-1",
    ]
    assert [each.stream_name for each in store.iter_streams("account", after="account")] == ["account-", "account-1"]


def test_the_streams_that_were_written_last_come_first(filled: Store) -> None:
    recent = filled.recent_streams()
    assert [each.stream_name for each in recent] == [
        "account:snapshot-1",
        "accounting-1",
        "account-1",
        "account-3",
        "account-2",
    ]
    of_category = filled.recent_streams("account", no_of_messages=2)
    assert of_category == recent[2:4]
    assert sorted(filled.recent_streams("account")) == [*filled.iter_streams("account")]
    assert filled.recent_streams("account", no_of_messages=0) == []


# Names that some collations sort among those of others: by letters first, case and accents last, two letters as one.
CATEGORIES = [
    "account",
    "Account",
    "accounts",
    "account:position",
    "account_",
    "account.",
    "ac",
    "ach",
    "accz",
    "e",
    "é",
]
IDS = [
    "",
    "1",
    "10",
    "2",
    "a",
    "A",
    "-",
    "h",
    "z",
    "é",
    ":position",
    "~",
    "\N{SOFT HYPHEN}",
    "\N{GREEK SMALL LETTER OMEGA}",
]


@pytest.mark.parametrize("locale", [None, "en-US", "en-US-u-ka-shifted", "cs", "en-US-u-kn-true"])
def test_streams_come_in_the_order_of_any_collation_and_none_is_missing(
    messagedb_server_url: str, locale: str | None
) -> None:
    """``ka-shifted`` compares letters before punctuation, as the collations of glibc do."""
    template = ""
    if locale is not None:
        has_icu = text(
            "SELECT count(*) FROM pg_collation WHERE collname LIKE '%-x-icu' AND"
            " current_setting('server_version_num')::int >= 150000"
        )
        with create_engine(messagedb_server_url, poolclass=NullPool).connect() as connection:
            if not connection.scalar(has_icu):
                pytest.skip("this PostgreSQL has no databases with collations of ICU")
        template = f"LOCALE_PROVIDER icu ICU_LOCALE '{locale}' LOCALE 'C' ENCODING 'UTF8' TEMPLATE template0"
    with database(messagedb_server_url, template) as engine:
        install.upgrade(engine)
        names = [f"{category}-{id}" for category in CATEGORIES for id in IDS] + CATEGORIES
        rows = [{"stream_name": name, "position": n, "type": "Opened"} for name in names for n in (0, 1)]
        with engine.begin() as connection:
            connection.execute(insert_into(schema.messages), rows)
            in_order = connection.scalars(
                text("SELECT DISTINCT stream_name FROM message_store.messages ORDER BY 1")
            ).all()
        store = Store(engine)
        for category in CATEGORIES:
            expected = [name for name in in_order if stream_name.category(name) == category]
            assert len(expected) == len(IDS) + 1
            for batch_size in (1, 1000):
                found = [*store.iter_streams(category, batch_size=batch_size)]
                assert [each.stream_name for each in found] == expected
                assert {each.version for each in found} == {1}
            after = [each.stream_name for each in store.iter_streams(category, after=expected[7])]
            assert after == expected[8:]


@contextmanager
def database(server_url: str, options: str) -> Iterator[Engine]:
    name = f"looked_into_{uuid4().hex}"
    admin = create_engine(server_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} {options}"))
        engine = create_engine(make_url(server_url).set(database=name))
        yield engine
        engine.dispose()
        connection.execute(text(f"DROP DATABASE {name}"))


# ---- activity


def test_activity_counts_the_last_messages_by_minute_category_and_type(each_store: Store, store: Store) -> None:
    for n, (name, type_, time) in enumerate(
        (
            ("account-1", "Opened", "2026-01-01 10:00:00"),
            ("account-2", "Opened", "2026-01-01 10:00:59.999999"),
            ("account-1", "Closed", "2026-01-01 10:00:30"),
            ("order-1", "Opened", "2026-01-01 10:01:00"),
            ("account-3", "Opened", "2026-01-01 10:01:01"),
        )
    ):
        insert(store, name, n, type_, "{}", f"timestamp '{time}'")
    first = last_of(store, "$all").time.replace(minute=0, second=0)
    second = first + timedelta(minutes=1)
    expected = [
        Activity(first, "account", "Closed", 1),
        Activity(first, "account", "Opened", 2),
        Activity(second, "account", "Opened", 1),
        Activity(second, "order", "Opened", 1),
    ]
    assert each_store.activity() == each_store.activity("$all") == expected
    assert each_store.activity("account") == expected[:3]
    assert each_store.activity(no_of_messages=2) == expected[2:]
    assert each_store.activity("account", no_of_messages=2) == [expected[0], expected[2]]


def test_times_that_python_does_not_have_become_the_closest_that_it_has(each_store: Store, store: Store) -> None:
    insert(store, "account-1", 0, "Opened", "{}", "timestamp 'infinity'")
    insert(store, "order-1", 0, "Opened", "{}", "timestamp '4000-01-01 BC'")
    years = {each.name: each.last_time.year for each in each_store.categories()}
    assert years == {"account": 9999, "order": 1}
    assert [each.last_time.year for each in each_store.recent_streams()] == [1, 9999]
    assert [each.minute.year for each in each_store.activity()] == [1, 9999]
    assert next(iter(each_store.iter_streams("account"))).last_time.year == 9999


# ---- by metadata


@pytest.fixture
def described(each_store: Store) -> Store:
    describe(each_store)
    return each_store


def describe(store: Store) -> None:
    metadata: list[Any] = [
        {"tenant": "north", "properties": {"user": "Ada", "attempt": 1}},
        {"tenant": "south", "tags": ["new", "big"]},
        None,
        {"tenant": "north", "properties": {"user": "Ben"}},
        {"properties": {"user": "Ada"}, "tags": ["big"], "by": None},
    ]
    store.write_batch("account-1", [NewMessage("Opened", {"n": n}, each) for n, each in enumerate(metadata[:3])])
    store.write_batch("order-1", [NewMessage("Opened", {"n": n}, metadata[n]) for n in (3, 4)])


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"tenant": "north"}, [0, 3]),
        ({"properties": {"user": "Ada"}}, [0, 4]),
        ({"properties": {"attempt": 1.0}}, [0]),
        ({"tenant": "north", "properties": {"user": "Ben"}}, [3]),
        ({"tags": ["big"]}, [1, 4]),
        ({"tags": "big"}, []),
        ({"by": None}, [4]),
        ({"properties": {}}, [0, 3, 4]),
        ({"tenant": "north' OR true --"}, []),
    ],
)
def test_messages_are_found_by_what_their_metadata_has(described: Store, fields: Any, found: list[int]) -> None:
    assert numbers(described.read_metadata(fields)) == found
    assert numbers(described.read_metadata(fields, "$all", backwards=True)) == found[::-1]
    assert numbers(described.iter_metadata(fields, batch_size=1)) == found
    assert numbers(described.read_metadata(fields, "account")) == [n for n in found if n < 3]
    assert numbers(described.iter_metadata(fields, "order", batch_size=1, backwards=True)) == [
        n for n in found[::-1] if n >= 3
    ]


def test_a_read_by_metadata_begins_where_it_is_told_to(described: Store) -> None:
    positions = [message.global_position for message in described.read("$all")]
    north = {"tenant": "north"}
    assert numbers(described.read_metadata(north, position=positions[1])) == [3]
    assert numbers(described.read_metadata(north, position=positions[2], backwards=True)) == [0]
    assert numbers(described.read_metadata(north, "account", positions[0], 1)) == [0]
    assert numbers(described.read_metadata(north, no_of_messages=1)) == [0]
    assert numbers(described.read_metadata(north, no_of_messages=-1)) == [0, 3]
    assert numbers(described.iter_metadata(north, "order", positions[0])) == [3]


@nested_is_refused
def test_a_message_that_cannot_be_decoded_is_named(each_store: Store, store: Store) -> None:
    insert(store, "account-1", 0, "Odd", NESTED, metadata='{"by": "Ada"}')
    with pytest.raises(MessageNotDecodable, match="message 0 of stream 'account-1'"):
        each_store.read_metadata({"by": "Ada"})


# ---- writers


def test_open_writers_are_those_that_have_written_and_not_ended(each_store: Store, store: Store) -> None:
    with store.engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        connection.execute(text("SET LOCAL application_name = 'importer'"))
        connection.execute(text("SELECT count(*) FROM message_store.messages"))
        assert each_store.open_writers() == []
        Store(connection).write("account-1", "Opened", {})
        (writer,) = each_store.open_writers()
        began = connection.scalar(text("SELECT now()"))
        assert writer == OpenWriter(pid, began, "postgres", "importer", "idle in transaction", writer.query, None)
        assert "write_message" in (writer.query or "")
        # One's own transaction is no other's.
        assert Store(connection).open_writers() == []
        connection.rollback()
    assert each_store.open_writers() == []


def test_a_prepared_transaction_is_an_open_writer_without_a_process() -> None:
    with temporary_server(settings={"max_prepared_transactions": "2"}) as url:
        engine = create_engine(url, poolclass=NullPool)
        install.upgrade(engine)
        for name in ("sooner", "later"):
            with engine.connect() as connection:
                Store(connection).write("account-1" if name == "later" else "order-1", "Opened", {})
                connection.execute(text(f"PREPARE TRANSACTION '{name}'"))
        for driver in DRIVERS:
            with store_on(driver, url) as store:
                writers = store.open_writers()
            assert [each.prepared for each in writers] == ["sooner", "later"]
            assert [each[0] for each in writers] == [None, None]
            assert [each.user_name for each in writers] == ["postgres", "postgres"]
            assert [each.query for each in writers] == [each.state for each in writers] == [None, None]
            assert all(each.since is not None and each.since.tzinfo is not None for each in writers)


@pytest.mark.parametrize("is_monitor", [False, True])
def test_what_others_execute_is_for_members_of_pg_monitor(
    store: Store, login: Callable[..., str], is_monitor: bool
) -> None:
    role = login(f"looker_{uuid4().hex}")
    with store.engine.begin() as connection:
        connection.execute(text(f"GRANT message_store{', pg_monitor' if is_monitor else ''} TO {role}"))
    looking = Store(as_role(store.engine, role))
    with store.engine.connect() as connection:
        connection.execute(text("SET LOCAL application_name = 'importer'"))
        Store(connection).write("account-1", "Opened", {})
        (writer,) = looking.open_writers()
        assert (writer.user_name, writer.application_name) == ("postgres", "importer")
        assert (writer.state, writer.query is not None, writer.since is not None) == (
            ("idle in transaction", True, True) if is_monitor else (None, False, False)
        )
        connection.rollback()


def test_the_role_message_store_may_look(store: Store) -> None:
    describe(store)
    looking = Store(as_role(store.engine, "message_store"))
    assert [each.messages for each in looking.categories()] == [3, 2]
    assert [each.messages for each in looking.categories(exact=True)] == [3, 2]
    assert [each.version for each in looking.iter_streams("account")] == [2]
    assert [each.stream_name for each in looking.recent_streams()] == ["order-1", "account-1"]
    assert sum(each.messages for each in looking.activity()) == 5
    (message,) = looking.read_metadata({"tenant": "south"})
    assert looking.read_message(message.id) == message
    assert looking.open_writers() == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_without_a_store_they_say_so(empty_database: Engine, driver: str) -> None:
    calls: list[Callable[[Store], Any]] = [
        lambda store: store.read_message(UUID(int=1)),
        lambda store: store.categories(),
        lambda store: store.categories(exact=True),
        lambda store: [*store.iter_streams("account")],
        lambda store: store.recent_streams(),
        lambda store: store.activity("account"),
        lambda store: store.read_metadata({"by": "Ada"}),
        lambda store: store.open_writers(),
    ]
    with store_on(driver, empty_database.url) as store:
        for call in calls:
            with pytest.raises(StoreNotInstalled):
                call(store)


# ---- in a transaction, and bad input


@pytest.mark.parametrize("driver", DRIVERS)
def test_in_a_transaction_they_find_what_it_has_written(messagedb_url: str, store: Store, driver: str) -> None:
    def body(connection: Any) -> None:
        joined = Store(connection)
        joined.write("account-1", "Opened", {}, {"by": "Ada"}, id=UUID(int=7))
        (message,) = joined.read("account-1")
        assert joined.read_message(UUID(int=7)) == message
        assert joined.read_metadata({"by": "Ada"}) == [message]
        assert [each.messages for each in joined.categories()] == [each.messages for each in joined.activity()] == [1]
        assert [*joined.iter_streams("account")] == joined.recent_streams()

    on(driver, messagedb_url, body)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda store: store.categories(exact=1), "exact"),
        (lambda store: store.iter_streams("account-1"), "category_name"),
        (lambda store: store.iter_streams("$all"), "category_name"),
        (lambda store: store.iter_streams(""), "category_name"),
        (lambda store: store.iter_streams("account", batch_size=0), "batch_size"),
        (lambda store: store.iter_streams("account", after="order-1"), "after"),
        (lambda store: store.iter_streams("account", after=""), "after"),
        (lambda store: store.iter_streams("account", after=7), "after"),
        (lambda store: store.recent_streams("account-1"), "category_name"),
        (lambda store: store.recent_streams(no_of_messages=-1), "no_of_messages"),
        (lambda store: store.activity("account-1"), "category_name"),
        (lambda store: store.activity(no_of_messages=None), "no_of_messages"),
        (lambda store: store.read_metadata({}), "fields"),
        (lambda store: store.read_metadata(None), "fields"),
        (lambda store: store.read_metadata("by"), "fields"),
        (lambda store: store.read_metadata({"by": object()}), "fields"),
        (lambda store: store.read_metadata({"by": "\0"}), "fields"),
        (lambda store: store.read_metadata({7: "Ada"}), "fields"),
        (lambda store: store.read_metadata({"by": "Ada"}, "account-1"), "category_name"),
        (lambda store: store.read_metadata({"by": "Ada"}, position=-1), "position"),
        (lambda store: store.read_metadata({"by": "Ada"}, no_of_messages=-2), "no_of_messages"),
        (lambda store: store.iter_metadata({"by": "Ada"}, batch_size=0), "batch_size"),
        (lambda store: store.iter_metadata({"by": "Ada"}, backwards=1), "backwards"),
    ],
)
def test_what_no_store_could_look_for_is_refused(store: Store, call: Any, argument: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{argument}="):
        call(store)
