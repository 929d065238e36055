"""The drop-in for message-db-py: what its users rely on, and the two side by side where the original is installed."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import psycopg2  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg2.extras import RealDictCursor  # type: ignore[import-untyped]
from psycopg2.pool import PoolError  # type: ignore[import-untyped]
from sqlalchemy import Engine, NullPool, create_engine, make_url, text

from messagedb_sa import InvalidArgument, Store, WrongExpectedVersion, compat, install
from messagedb_sa.compat import ConnectionPool, MessageDB
from messagedb_sa.json_text import is_json
from messagedb_sa.postgres import temporary_database

from .conftest import fetched_once

OWN_SQL = "SELECT * FROM get_stream_messages(%(stream_name)s, %(position)s, %(batch_size)s);"
SEARCH_PATH = "-c search_path=message_store,public"


def libpq(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture
def url(messagedb_url: str, store: Store) -> str:
    return libpq(messagedb_url)


@pytest.fixture
def old(url: str) -> Iterator[MessageDB]:
    """A client as message-db-py's users make one, on an empty store."""
    client = MessageDB.from_url(url, options=SEARCH_PATH)
    yield client
    client.connection_pool.closeall()


@pytest.fixture
def pool(url: str) -> Iterator[ConnectionPool]:
    pool = ConnectionPool.from_url(url, max_connections=2)
    yield pool
    pool.closeall()


@pytest.fixture
def filled(old: MessageDB) -> MessageDB:
    """Messages 0 to 5 in account-1 and account-2 in turn, and one in another category."""
    for n in range(6):
        old.write(f"account-{n % 2 + 1}", "Deposited", {"n": n})
    old.write("order-1", "Placed", {"n": 6})
    return old


def numbers(messages: list[dict[str, Any]]) -> list[int]:
    return [message["data"]["n"] for message in messages]


# ---- results


def test_a_message_is_a_plain_dict_with_a_naive_time_in_utc(old: MessageDB) -> None:
    assert old.write("account-1", "Opened", {"n": 1}, {"by": "me"}) == 0
    (message,) = old.read("account-1")
    assert type(message) is dict
    id, time = message.pop("id"), message.pop("time")
    assert str(UUID(id)) == id
    assert time.tzinfo is None
    assert abs(datetime.now(timezone.utc).replace(tzinfo=None) - time) < timedelta(minutes=1)
    assert list(message.items()) == [
        ("stream_name", "account-1"),
        ("type", "Opened"),
        ("position", 0),
        ("global_position", 1),
        ("data", {"n": 1}),
        ("metadata", {"by": "me"}),
    ]


@pytest.mark.parametrize("metadata", [None, {}])
def test_empty_metadata_is_null(old: MessageDB, metadata: Any) -> None:
    old.write("account-1", "Opened", {}, metadata)
    old.write_batch("account-1", [("Opened", {}, metadata)])
    assert [(message["data"], message["metadata"]) for message in old.read("account-1")] == [({}, None)] * 2


def test_keys_that_are_no_text_become_text(old: MessageDB) -> None:
    old.write("account-1", "Opened", {1: "one"})  # type: ignore[dict-item]
    assert old.read("account-1")[0]["data"] == {"1": "one"}


def test_read_goes_by_the_kind_of_name(filled: MessageDB) -> None:
    assert numbers(filled.read("account-1")) == numbers(filled.read_stream("account-1")) == [0, 2, 4]
    assert numbers(filled.read("account")) == numbers(filled.read_category("account")) == [0, 1, 2, 3, 4, 5]
    assert numbers(filled.read("$all")) == [0, 1, 2, 3, 4, 5, 6]


def test_a_position_is_included_except_in_all(filled: MessageDB) -> None:
    assert numbers(filled.read("account-1", position=1)) == numbers(filled.read_stream("account-1", 1)) == [2, 4]
    assert numbers(filled.read("account", position=5)) == numbers(filled.read_category("account", 5)) == [4, 5]
    assert numbers(filled.read("$all", position=5)) == [5, 6]


def test_all_is_read_as_it_stands_without_a_wait_for_who_is_writing(old: MessageDB) -> None:
    with old.store.engine.connect() as connection:
        Store(connection).write("slow-1", "Opened", {"n": 0})
        old.write("account-1", "Opened", {"n": 1})
        assert numbers(old.read("$all")) == [1]
        assert old.store.read("$all", settle_seconds=0) == []


def test_the_number_of_messages_is_limited(filled: MessageDB) -> None:
    assert numbers(filled.read("account-1", no_of_messages=2)) == numbers(filled.read_stream("account-1", 0, 2))
    assert numbers(filled.read_category("account", 0, 2)) == numbers(filled.read("$all", no_of_messages=2)) == [0, 1]
    assert len(filled.read("$all", no_of_messages=-1)) == 7


def test_consumers_of_a_group_share_a_category(old: MessageDB) -> None:
    for n in range(20):
        old.write(f"account-{n}", "Opened", {"n": n})
    shares = [old.read_category("account", 0, 100, member, 2) for member in (0, 1)]
    assert all(shares)
    assert sorted(numbers(shares[0] + shares[1])) == list(range(20))
    assert [old.read("account", None, 0, 100, member, 2) for member in (0, 1)] == shares


def test_a_group_is_ignored_where_there_is_no_category(filled: MessageDB) -> None:
    for name in ("account-1", "$all"):
        group = filled.read(name, consumer_group_member=7, consumer_group_size=2)
        assert group == filled.read(name)
    assert filled.read("account", consumer_group_size=2) == filled.read("account")


def test_the_last_message_is_a_plain_dict_or_none(filled: MessageDB) -> None:
    last = filled.read_last_message("account-1")
    assert type(last) is dict
    assert last == filled.read("account-1")[-1]
    assert filled.read_last_message("account-9") is None


def test_the_last_message_of_a_stream_without_a_hyphen_can_be_read(old: MessageDB) -> None:
    old.write("user_stream", "register", {"name": "John Doe"})
    last = old.read_last_message("user_stream")
    assert last is not None
    assert last["data"] == {"name": "John Doe"}


def test_stream_identifiers_are_those_of_exactly_this_category(old: MessageDB) -> None:
    for name in ("a_c-2", "a_c-1", "a_c-1", "a_c", "abc-wrong", "a_c:snapshot-3", "a%-4", "a%b-wrong"):
        old.write(name, "T", {})
    assert old.stream_identifiers("a_c") == ["1", "2"]
    assert old.stream_identifiers("a%") == ["4"]
    assert old.stream_identifiers("none") == []


def test_a_batch_is_written_in_order_from_the_expected_version_on(old: MessageDB) -> None:
    records: list[Any] = [("A", {"n": 0}), ["B", {"n": 1}, {"by": "me"}], ("C", {"n": 2}, None, "ignored")]
    assert old.write_batch("account-1", records, expected_version=-1) == 2
    assert old.write_batch("account-1", iter(records), 2) == 5
    messages = old.read("account-1")
    assert [message["type"] for message in messages] == ["A", "B", "C"] * 2
    assert [message["metadata"] for message in messages] == [None, {"by": "me"}, None] * 2


# ---- errors


def test_a_wrong_expected_version_is_a_value_error_with_postgresqls_words(filled: MessageDB) -> None:
    expected = "P0001-ERROR:  Wrong expected version: 7 (Stream: account-1, Stream Version: 2)"
    writes: list[Callable[[], int]] = [
        lambda: filled.write("account-1", "Opened", {}, expected_version=7),
        lambda: filled.write_batch("account-1", [("Opened", {}), ("Opened", {})], expected_version=7),
    ]
    for write in writes:
        with pytest.raises(ValueError, match="Wrong expected version") as caught:
            write()
        assert str(caught.value) == expected
        assert type(caught.value) is ValueError
        assert isinstance(caught.value.__cause__, psycopg2.errors.RaiseException)
        assert isinstance(caught.value.__context__, WrongExpectedVersion)
    assert len(filled.read("account-1")) == 3


def test_an_empty_batch_is_a_value_error(old: MessageDB) -> None:
    with pytest.raises(InvalidArgument, match="a batch has at least one message"):
        old.write_batch("account-1", [])
    assert issubclass(InvalidArgument, ValueError)


def test_data_that_is_no_json_is_a_value_error_and_of_no_json_type_a_type_error(old: MessageDB) -> None:
    with pytest.raises(ValueError, match=r"^22P02-ERROR:  invalid input syntax for type json$"):
        old.write("account-1", "Opened", {"n": float("nan")})
    with pytest.raises(ValueError, match=r"^22P02-ERROR:  invalid input syntax for type json$"):
        old.write_batch("account-1", [("Opened", {}), ("Opened", {"n": float("nan")})])
    with pytest.raises(ValueError, match="NUL"):
        old.write("account-1", "Opened", {"n": "\0"})
    with pytest.raises(TypeError, match=r"^Object of type datetime is not JSON serializable$"):
        old.write("account-1", "Opened", {"n": datetime(2020, 1, 1)})
    assert old.read("$all") == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda old: old.read_stream("account"), "account is not a stream"),
        (lambda old: old.read_category("account-1"), "account-1 is not a category"),
        (lambda old: old.stream_identifiers("account-1"), "account-1 is not a category"),
        (
            lambda old: old.read_category("account", consumer_group_member=0),
            "Both consumer_group_member and consumer_group_size must be provided together or both must be None",
        ),
        (
            lambda old: old.read_category("account", consumer_group_size=2),
            "Both consumer_group_member and consumer_group_size must be provided together or both must be None",
        ),
        (lambda old: old.read_category("account", 0, 1, -1, 2), "consumer_group_member must be >= 0, got -1"),
        (lambda old: old.read_category("account", 0, 1, 0, 0), "consumer_group_size must be > 0, got 0"),
        (
            lambda old: old.read_category("account", 0, 1, 2, 2),
            "consumer_group_member (2) must be less than consumer_group_size (2)",
        ),
    ],
)
def test_wrong_names_and_groups_are_value_errors(old: MessageDB, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(old)


@pytest.mark.parametrize(
    "call",
    [
        lambda old: old.write("", "Opened", {}),
        lambda old: old.write("account-1", "Opened", {}, expected_version="0"),
        lambda old: old.write_batch("account-1", [("", {})]),
        lambda old: old.read("account-1", position=1.5),
        lambda old: old.read("$all", position="1"),
        lambda old: old.read("$all", no_of_messages=-2),
        lambda old: old.read_category("account", 0, 1, 0, 40_000),
        lambda old: old.read("account", None, 0, 1, 2, 2),
        lambda old: old.read("account-1", "SELECT %(other)s"),
    ],
)
def test_what_no_store_could_take_is_a_value_error_too(old: MessageDB, call: Any) -> None:
    with pytest.raises(InvalidArgument):
        call(old)


def test_a_database_without_a_store_gives_the_drivers_errors(empty_database: Engine) -> None:
    client = MessageDB.from_url(empty_database.url.set(drivername="postgresql").render_as_string(hide_password=False))
    with pytest.raises(ValueError, match=r'^3F000-ERROR:  schema "message_store" does not exist$'):
        client.write("account-1", "Opened", {})
    reads: list[Callable[[], Any]] = [
        lambda: client.read("account-1"),
        lambda: client.read_stream("account-1"),
        lambda: client.read_last_message("account-1"),
        lambda: client.read_category("account"),
        lambda: client.stream_identifiers("account"),
    ]
    for read in reads:
        with pytest.raises(psycopg2.ProgrammingError, match="message_store"):
            read()
    client.connection_pool.closeall()


def test_a_lost_connection_is_the_drivers_error_and_the_next_call_works(old: MessageDB, store: Store) -> None:
    ended = text(
        "SELECT bool_and(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for call in (lambda: old.write("account-1", "Opened", {}), lambda: old.read("account-1")):
        with store.engine.connect() as connection:
            assert connection.scalar(ended)
        with pytest.raises(psycopg2.OperationalError):
            call()
        call()
    assert len(old.read("account-1")) == 1


# ---- SQL of the caller's own


def test_own_sql_runs_with_the_search_path_of_the_connection(url: str, filled: MessageDB) -> None:
    assert numbers(filled.read("account-1", OWN_SQL, position=1, no_of_messages=1)) == [2]
    elsewhere = MessageDB.from_url(url, options="-c search_path=public")
    assert elsewhere.read("account-1") == filled.read("account-1")
    with pytest.raises(psycopg2.errors.UndefinedFunction, match="get_stream_messages"):
        elsewhere.read("account-1", OWN_SQL)
    elsewhere.connection_pool.closeall()


def test_own_sql_gets_the_consumer_group(old: MessageDB) -> None:
    for n in range(20):
        old.write(f"account-{n}", "Opened", {"n": n})
    own = (
        "SELECT * FROM get_category_messages('account', %(position)s::bigint, %(batch_size)s::bigint,"
        " NULL, %(consumer_group_member)s::bigint, %(consumer_group_size)s::bigint);"
    )
    shares = [old.read("account-any", own, 0, 100, member, 2) for member in (0, 1)]
    assert shares == [old.read_category("account", 0, 100, member, 2) for member in (0, 1)]


def test_own_sql_for_all_gets_the_position_as_it_is(filled: MessageDB) -> None:
    own = "SELECT * FROM messages WHERE global_position > %(position)s ORDER BY 3 LIMIT %(batch_size)s"
    assert len(filled.read("$all", own, position=5)) == 2


def test_own_sql_that_is_empty_is_none(filled: MessageDB) -> None:
    assert filled.read("account", "") == filled.read("account")


# ---- connections


def test_a_client_is_made_from_the_parts_of_a_url(url: str) -> None:
    parts = make_url(url)
    client = MessageDB(
        dbname=parts.database or "",
        user=parts.username or "",
        password=parts.password or "",
        host=str(parts.query.get("host", parts.host)),
        port=int(str(parts.query.get("port", parts.port or 5432))),
    )
    assert client.write("account-1", "Opened", {}) == 0
    client.connection_pool.closeall()


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_client_works_on_an_engine_of_either_driver(url: str, old: MessageDB, driver: str) -> None:
    pytest.importorskip(driver)
    engine = create_engine(make_url(url).set(drivername=f"postgresql+{driver}"))
    client = MessageDB(connection_pool=engine)
    assert client.connection_pool is engine
    assert client.write_batch("account-1", [("Opened", {"n": 0}), ("Opened", {"n": 1})]) == 1
    assert client.read("account-1") == old.read("account-1")
    with pytest.raises(ValueError, match=r"^P0001-ERROR:  Wrong .*: 0 \(Stream: account-1, Stream Version: 1\)$"):
        client.write("account-1", "Opened", {}, expected_version=0)
    with pytest.raises(engine.dialect.loaded_dbapi.ProgrammingError, match="no_such_table"):
        client.read("account-1", "SELECT * FROM no_such_table")
    engine.dispose()


def test_a_pool_may_be_shared_and_what_is_none_is_refused(pool: ConnectionPool, store: Store) -> None:
    MessageDB(connection_pool=pool).write("account-1", "Opened", {"n": 1})
    assert numbers(MessageDB(connection_pool=pool).read("account-1")) == [1]
    with store.engine.connect() as connection, pytest.raises(InvalidArgument, match="connection_pool"):
        MessageDB(connection_pool=connection)  # type: ignore[arg-type]


def test_the_store_beneath_is_there_for_new_code(old: MessageDB) -> None:
    old.write("account-1", "Opened", {"n": 1})
    assert old.store.read_stream("account-1")[0].data == {"n": 1}


def test_a_lent_connection_is_psycopg2s_own(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    assert type(connection) is psycopg2.extensions.connection
    with connection, connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute("SELECT message_store.write_message(gen_random_uuid()::varchar, 'account-1', 'Opened', '{}')")
        assert cursor.fetchone() == {"write_message": 0}
    pool.release(connection)
    assert len(MessageDB(connection_pool=pool).read("account-1")) == 1


def test_a_released_connection_is_rolled_back_and_lent_again(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    connection.cursor().execute("CREATE TABLE never (n int)")
    pool.release(connection)
    again = pool.get_connection()
    assert again is connection
    with again.cursor() as cursor:
        cursor.execute("SELECT to_regclass('never')")
        assert cursor.fetchone() == (None,)
    pool.release(again)


@pytest.mark.parametrize("by", ["the pool", "the user"])
def test_a_closed_connection_is_not_lent_again(pool: ConnectionPool, caplog: pytest.LogCaptureFixture, by: str) -> None:
    connection = pool.get_connection()
    if by == "the user":
        connection.close()
    pool.release(connection, close=by == "the pool")
    assert connection.closed
    again = pool.get_connection()
    assert not again.closed
    pool.release(again)
    assert caplog.records == []


def test_a_connection_that_is_not_lent_is_not_taken_back(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    pool.release(connection)
    with pytest.raises(PoolError, match="trying to put unkeyed connection"):
        pool.release(connection)


def test_a_pool_lends_as_many_connections_as_it_may(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.engine.pool, "_timeout", 0)
    lent = [pool.get_connection(), pool.get_connection()]
    with pytest.raises(PoolError, match="connection pool exhausted"):
        pool.get_connection()
    with pytest.raises(PoolError, match="connection pool exhausted"):
        MessageDB(connection_pool=pool).read("account")
    for connection in lent:
        pool.release(connection)
    assert MessageDB(connection_pool=pool).read("account") == []


def test_a_closed_pool_has_closed_all_and_gives_no_more(pool: ConnectionPool) -> None:
    client = MessageDB(connection_pool=pool)
    lent, idle = pool.get_connection(), pool.get_connection()
    pool.release(idle)
    pool.closeall()
    assert lent.closed
    assert idle.closed
    pool.closeall()
    for call in (pool.get_connection, lambda: client.read("account"), lambda: client.write("account-1", "T", {})):
        with pytest.raises(PoolError, match="connection pool is closed"):
            call()


def test_a_pool_connects_at_once_with_psycopg2s_arguments(url: str) -> None:
    with pytest.raises(psycopg2.OperationalError, match="no_such_database"):
        ConnectionPool(url, dbname="no_such_database")
    with pytest.raises(psycopg2.ProgrammingError, match="invalid dsn"):
        ConnectionPool("nonsense")


@pytest.mark.parametrize("number", [-1, "1", None, 1.5])
def test_the_number_of_connections_is_a_number(number: Any) -> None:
    with pytest.raises(ValueError, match=r'^"max_connections" must be a positive integer$'):
        ConnectionPool("", max_connections=number)


def test_a_pool_of_none_has_one_connection(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ConnectionPool(url, max_connections=0)
    assert MessageDB(connection_pool=pool).read("$all") == []
    monkeypatch.setattr(pool.engine.pool, "_timeout", 0)
    pool.get_connection()
    with pytest.raises(PoolError, match="connection pool exhausted"):
        pool.get_connection()
    pool.closeall()


# ---- side by side with the original, where it is installed


class Pair:
    """The original and ours, each on a database of its own, or both on ours."""

    def __init__(self, original: Any, beside: Any, ours: MessageDB) -> None:
        self.original = original
        self.beside = beside
        self.ours = ours

    def empty(self) -> None:
        for client in (self.original, self.ours):
            connection = client.connection_pool.get_connection()
            with connection, connection.cursor() as cursor:
                cursor.execute("TRUNCATE message_store.messages RESTART IDENTITY")
            client.connection_pool.release(connection)

    def clients(self) -> list[Any]:
        return [self.original, self.beside, self.ours]


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The module message_db.client of message-db-py, fetched once into pytest's cache: it is no dependency."""
    # Without what it depends on: it asks for psycopg2, which needs a compiler, and takes psycopg2-binary as well.
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-requires-python"]
    wanted = "message-db-py==0.3.5"
    folder = fetched_once(request, "message-db-py", lambda folder: [*install, "--target", str(folder), wanted])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("message_db.client")


@pytest.fixture(scope="module")
def pair(client: Any, messagedb_server_url: str, messagedb_url: str) -> Iterator[Pair]:
    with temporary_database(messagedb_server_url) as other:
        install.upgrade(create_engine(other, poolclass=NullPool))
        options = {"options": SEARCH_PATH}
        pair = Pair(
            client.MessageDB.from_url(libpq(other), **options),
            client.MessageDB.from_url(libpq(messagedb_url), **options),
            MessageDB.from_url(libpq(messagedb_url), **options),
        )
        yield pair
        for each in pair.clients():
            each.connection_pool.closeall()


def outcome(client: Any, call: tuple[str, tuple[Any, ...]]) -> Any:
    """What comes back; or an error's class, text and cause; of the driver's errors the first line."""
    method, arguments = call
    try:
        return getattr(client, method)(*arguments)
    except psycopg2.Error as error:
        return type(error), str(error).partition("\n")[0]
    except (ValueError, TypeError, LookupError) as error:
        return type(error), str(error), type(error.__cause__)


NAMES = ["a", "a-1", "a-2", "a-1+3", "a_b-1", "a:snapshot-1", "b", "b-1-2", "b-é", "$all", "$all-1"]
names = st.sampled_from(NAMES)
letters = st.text("aé\\\"'%:$😀\x01\ud800", max_size=4)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | letters,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(letters | st.integers(0, 9), inner, max_size=3),
    max_leaves=5,
)
documents = st.dictionaries(st.text("ab%:", max_size=2), values, max_size=3)
metadatas = st.none() | documents
versions = st.none() | st.integers(-1, 3)
types = st.sampled_from(["Opened", "ü%s:x"])
# In a batch, what is no JSON is refused before the version is compared, not after.
storable = documents.filter(lambda document: is_json(json.dumps(document)))
records = st.tuples(types, storable) | st.tuples(types, storable, st.none() | storable)
writes = st.tuples(names, types, documents, metadatas, versions).map(lambda a: ("write", a)) | st.tuples(
    names, st.lists(records, min_size=1, max_size=3), versions
).map(lambda a: ("write_batch", a))


@settings(max_examples=60)
@given(st.lists(writes, max_size=12))
def test_the_original_and_ours_write_the_same(pair: Pair, calls: list[Any]) -> None:
    pair.empty()
    for call in calls:
        assert outcome(pair.original, call) == outcome(pair.ours, call), call
    without = {"id": None, "time": None}
    originals, ours = ([message | without for message in each.read("$all")] for each in (pair.original, pair.ours))
    assert originals == ours
    for name in NAMES:
        assert outcome(pair.beside, ("read", (name,))) == outcome(pair.ours, ("read", (name,)))


def test_the_original_and_ours_read_the_same(pair: Pair) -> None:
    pair.empty()
    for n in range(3):
        for name in NAMES:
            pair.original.write(name, "T", {"n": n})
            pair.ours.write(name, "T", {"n": n}, {"by": name} if n else None)
    pages = [(position, limit) for position in (-1, 0, 1, 2, 3, 20, 33, 34) for limit in (0, 1, 5, 1000)]
    groups = [(None, None), (None, 2), *((member, size) for member in (-1, 0, 1, 2) for size in (None, 0, 1, 2))]
    calls: list[tuple[str, tuple[Any, ...]]] = [
        *(("read", (name, sql, *page)) for name in NAMES for sql in (None, "", OWN_SQL) for page in pages),
        *(("read_stream", (name, *page)) for name in NAMES for page in pages),
        *(("read_category", (name, *page)) for name in NAMES for page in pages),
        *(("read_category", (name, 0, 1000, *group)) for name in NAMES for group in groups),
        *(("read_last_message", (name,)) for name in [*NAMES, "none", "none-1"]),
        *(("stream_identifiers", (name,)) for name in ("a", "a-1", "b", "a:snapshot", "none")),
    ]
    for call in calls:
        assert outcome(pair.beside, call) == outcome(pair.ours, call), call


@pytest.mark.parametrize(
    "call",
    [
        ("write", ("a-1", "Opened", {"n": {1}})),
        ("write", ("a-1", "Opened", {"n": float("inf")})),
        ("write", ("a-1\nb", "Opened", {}, None, 5)),
        ("write_batch", ("a-1", [("Opened",)])),
        ("write_batch", ("a-1", None)),
        ("read", ("a-1", "SELECT * FROM no_such_table")),
        ("read", ("a-1", "SELECT no_such_column FROM messages")),
        ("read", ("a-1", "SELECT * FROM messages WHERE 1 / %(position)s = 1")),
        ("read", ("a-1", "SELECT get_stream_messages(stream_name, 0, '100%%') FROM messages; ")),
        ("read", (None,)),
        ("read_stream", (None,)),
        ("read_category", (None,)),
        ("stream_identifiers", (None,)),
        ("read", ("a-1", None, 0, 10, 5, 2)),
        ("read", ("a", None, 0, 10, None, 2)),
        ("read", ("a", None, 0, 10, 0, 2)),
        (
            "read",
            ("a-1", "SELECT * FROM get_category_messages('a', 0, 9, NULL, %(consumer_group_member)s, 2)", 0, 9, 1, 2),
        ),
    ],
    ids=repr,
)
def test_the_original_and_ours_make_the_same_of_mistakes(pair: Pair, call: Any) -> None:
    pair.empty()
    pair.ours.write("a-1", "Opened", {"n": 1})
    assert outcome(pair.beside, call) == outcome(pair.ours, call)


@pytest.mark.parametrize("name", ["MessageDB", "ConnectionPool"])
def test_the_original_and_ours_have_the_same_signatures(client: Any, name: str) -> None:
    original, ours = getattr(client, name), getattr(compat, name)
    for method in ("__init__", *(each for each in vars(original) if not each.startswith("_"))):
        theirs, own = (inspect.signature(getattr(each, method)).parameters.values() for each in (original, ours))
        assert [(p.name, p.kind, p.default) for p in own] == [(p.name, p.kind, p.default) for p in theirs], method
